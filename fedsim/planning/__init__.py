"""``fedsim plan``: what runs where and how much memory it takes, before anything starts."""
