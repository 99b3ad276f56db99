"""The study's tables: what each has in it, and how it is gathered from the cells."""
