// One block of work by rueidislock. A module of its own, so that the others can be had without it.
package main

import (
	"context"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"

	"redlock-bench-peers/work"
)

func main() {
	work.Main(func(_ string, addresses []string) work.Locker {
		locker, err := rueidislock.NewLocker(rueidislock.LockerOption{
			ClientOption: rueidis.ClientOption{InitAddress: addresses[:1]},
			KeyValidity:  work.TTL,
			// One key on one server, as in its own benchmark.
			KeyMajority:    1,
			NoLoopTracking: true,
		})
		work.Must(err)
		return client{locker}
	})
}

type client struct{ rueidislock.Locker }

func (c client) Mutex(key string) work.Mutex { return mutex{c.Locker, key} }

type mutex struct {
	locker rueidislock.Locker
	key    string
}

func (m mutex) Acquire() func() {
	_, cancel, err := m.locker.WithContext(context.Background(), m.key)
	work.Must(err)
	return cancel
}
