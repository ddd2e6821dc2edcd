"""What everything of one kind must do, as named checks; `conformance.KINDs.SUITE` holds them. The public face is `testing`."""
