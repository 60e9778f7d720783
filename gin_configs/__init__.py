"""gin configurations: one file per run kind, model family and size."""
