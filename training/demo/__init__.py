"""`make demo`: train on the demo catalogue, serve the result, show and check what it recommends."""
