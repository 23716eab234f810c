// One block of work by redsync, bsm/redislock or rueidislock.
package main

import (
	"context"
	"errors"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	redsyncredis "github.com/go-redsync/redsync/v4/redis"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"

	"redlock-bench-peers/work"
)

func main() {
	work.Main(func(of string, addresses []string) work.Locker {
		switch of {
		case "redsync":
			return newRedsync(addresses)
		case "redislock":
			return newRedislock(addresses[0])
		case "rueidislock":
			return newRueidislock(addresses[0])
		}
		panic("no such library: " + of)
	})
}

// redsync over independent servers.
type redsyncLocker struct{ *redsync.Redsync }

func newRedsync(addresses []string) work.Locker {
	var pools []redsyncredis.Pool
	for _, address := range addresses {
		pools = append(pools, goredis.NewPool(redis.NewClient(&redis.Options{Addr: address})))
	}
	return redsyncLocker{redsync.New(pools...)}
}

func (l redsyncLocker) Mutex(key string) work.Mutex {
	return redsyncMutex{l.NewMutex(key, redsync.WithExpiry(work.TTL), redsync.WithTries(1<<30), redsync.WithRetryDelay(time.Millisecond))}
}

type redsyncMutex struct{ *redsync.Mutex }

func (m redsyncMutex) Acquire() func() {
	work.Must(m.Lock())
	return func() {
		ok, err := m.Unlock()
		work.Must(err)
		if !ok {
			panic("not unlocked")
		}
	}
}

// bsm/redislock over one server. In the loop it tries again at once, as the README of rueidislock has it.
type redislockLocker struct{ *redislock.Client }

func newRedislock(address string) work.Locker {
	return redislockLocker{redislock.New(redis.NewClient(&redis.Options{Addr: address}))}
}

func (l redislockLocker) Mutex(key string) work.Mutex { return redislockMutex{l.Client, key} }

type redislockMutex struct {
	client *redislock.Client
	key    string
}

func (m redislockMutex) Acquire() func() {
	for {
		lock, err := m.client.Obtain(context.Background(), m.key, work.TTL, nil)
		if errors.Is(err, redislock.ErrNotObtained) {
			continue
		}
		work.Must(err)
		return func() { work.Must(lock.Release(context.Background())) }
	}
}

// rueidislock over one key on one server, as in its own benchmark.
type rueidislockLocker struct{ rueidislock.Locker }

func newRueidislock(address string) work.Locker {
	locker, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption:   rueidis.ClientOption{InitAddress: []string{address}},
		KeyValidity:    work.TTL,
		KeyMajority:    1,
		NoLoopTracking: true,
	})
	work.Must(err)
	return rueidislockLocker{locker}
}

func (l rueidislockLocker) Mutex(key string) work.Mutex { return rueidislockMutex{l.Locker, key} }

type rueidislockMutex struct {
	locker rueidislock.Locker
	key    string
}

func (m rueidislockMutex) Acquire() func() {
	_, cancel, err := m.locker.WithContext(context.Background(), m.key)
	work.Must(err)
	return cancel
}
