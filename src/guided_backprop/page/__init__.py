"""One page that explains photos by itself, in a browser: engine, graphs and class names inside."""
