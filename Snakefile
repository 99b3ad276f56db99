include: "workflow/Snakefile"


# An included rule is never the default target by itself.
workflow.default_target = "all"
