"""What only developers run: ahead-of-time kernel reports and launch tuning."""
