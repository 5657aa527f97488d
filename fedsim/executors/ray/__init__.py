"""The Ray executor: actor calls, queues, retries, and the reduction of sums at the aggregator."""
