"""One module for each family of cases."""
