"""The label-budget benchmark: methods x budgets x label draws, with statistics and a report."""
