"""Variables of a recipe found by trials: what is varied, who proposes values, what scores them."""
