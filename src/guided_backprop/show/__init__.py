"""From explanations to what people look at: pictures, figures, notebooks, folders."""
