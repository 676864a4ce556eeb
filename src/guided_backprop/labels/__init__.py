"""From what a user asks for to the weight of each of the model's outputs in the score: one class for each form."""
