"""Speed of the parts where speed is code. Makes its own inputs: needs no data and no trained model."""
