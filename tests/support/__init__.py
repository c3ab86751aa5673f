"""What tests share: servers, databases, the command line, and values sealed without rewrap."""
