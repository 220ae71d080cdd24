"""What a run takes before it starts: memory, operations and hours, layout by layout."""
