"""How linear a trajectory is, compared with its nulls and with steps that no fit has seen."""
