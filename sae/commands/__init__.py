"""What a person types: arguments to options, and a body for each command."""
