"""What is believed of the frameworks' operators, and how the rest is expressed by those."""
