"""The label-budget benchmark: which method, with how many labels."""
