"""From text queries to the requests that thinking models are asked, and what a corpus is composed of."""
