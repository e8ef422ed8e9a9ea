"""The report of a sweep: its results folder read as it is, figures, sentences, and one page made of them."""
