"""What users write: the sections of study files and catalogues, their YAML, its messages and its schema."""
