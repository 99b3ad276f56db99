"""The report's figures: what each shows, and the function that draws it."""
