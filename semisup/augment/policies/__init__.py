"""What a view is: policies by name, their options, and where they are made."""
