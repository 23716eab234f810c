module redlock-bench-rueidislock

go 1.26.0

require (
	github.com/redis/rueidis v1.0.79
	github.com/redis/rueidis/rueidislock v1.0.79
	redlock-bench-peers v0.0.0
)

replace redlock-bench-peers => ../go
