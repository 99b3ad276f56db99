"""What a study costs before it runs: sizes of models, disk, time, and what each job asks a cluster for."""
