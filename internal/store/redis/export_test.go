package redis

// Check wraps a connection as those to a server are.
var Check = check
