"""What rewrap costs: measured against the server's own limit, against its peers, and over table sizes."""
