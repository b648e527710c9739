"""``litelvlm evaluate``: a data set, pruning methods and budgets to scores, tables and plots."""
