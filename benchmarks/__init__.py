"""What is measured of the pipeline from outside: speed, experiments, drills. No stage imports it."""
