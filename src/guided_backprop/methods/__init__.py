"""The methods: one subject, one rule, batch by batch."""
