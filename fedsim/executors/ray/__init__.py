"""Work groups on Ray actors: calls, queues, retries, and the way of sums to the aggregator."""
