"""Who may: authentication, tokens, rate limits and quotas."""
