"""``fedsim plan``: what will run where, and what memory it takes, before anything is started."""
