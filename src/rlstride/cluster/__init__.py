"""What a study needs to know of a Slurm cluster: whether its jobs could start, and which jobs an ended run left."""
