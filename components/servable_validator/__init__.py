"""ServableValidator: a fresh process loads the servable and replays its warm-up requests; blesses what behaves."""
