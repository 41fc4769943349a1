"""One file per claim; each writes `benchmarks/results/NAME.json` through `record.write_result`."""
