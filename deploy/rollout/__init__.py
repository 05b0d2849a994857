"""Moving an endpoint to a version in judged steps, and back."""
