"""What talks use and cost, kept in the store: the ledger, and the budgets that bound it."""
