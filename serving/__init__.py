"""The web page: a trained pipeline as a service on one machine."""
