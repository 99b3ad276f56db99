"""Predicts a later model from a first part of a run: one file for each kind of method, behind one interface."""
