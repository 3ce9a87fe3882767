"""The zoo: entries, recipes, weights, and the models that they make."""
