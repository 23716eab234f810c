// Package work does one block of work by one library in Go, and speaks as src/block.rs says.
package work

import (
	"encoding/json"
	"flag"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// TTL is longer than any block takes.
const TTL = 20 * time.Second

// Locker is one client of a library.
type Locker interface {
	Mutex(key string) Mutex
}

// Mutex is what is to be locked.
type Mutex interface {
	// Acquire waits, and returns how to release.
	Acquire() (release func())
}

type outcome struct {
	Seconds     float64   `json:"seconds"`
	Counts      []uint64  `json:"counts"`
	Total       uint64    `json:"total"`
	Waits       []float64 `json:"waits_us"`
	CPU         float64   `json:"cpu_us"`
	Allocations *uint64   `json:"allocations"`
	Bytes       *uint64   `json:"bytes"`
}

type worker struct {
	count, total uint64
	waits        []float64
}

// Main does what the command line orders, with clients that are made by connect.
func Main(connect func(of string, addresses []string) Locker) {
	of := flag.String("of", "", "which library")
	nodes := flag.String("nodes", "", "the servers")
	work := flag.String("work", "", "pairs, contended, clients, handoff, loop")
	tasks := flag.Int("tasks", 1, "how many at once")
	seconds := flag.Float64("seconds", 1, "for how long it is measured")
	warmUp := flag.Float64("warm-up", 0.1, "for how long it runs before that")
	threads := flag.Int("threads", 2, "of the runtime")
	startAt := flag.Int64("start-at", 0, "when the measuring begins, in milliseconds")
	flag.Parse()
	runtime.GOMAXPROCS(*threads)

	addresses := strings.Split(*nodes, ",")
	window := func() (time.Time, time.Time) {
		start := time.Now().Add(time.Duration(*warmUp * float64(time.Second)))
		if *startAt != 0 {
			start = time.Now().Add(time.Until(time.UnixMilli(*startAt)))
		}
		return start, start.Add(time.Duration(*seconds * float64(time.Second)))
	}

	var result outcome
	if *work == "handoff" {
		clients := []Locker{connect(*of, addresses), connect(*of, addresses)}
		start, end := window()
		result = handOff(clients, start, end)
	} else {
		clients := []Locker{connect(*of, addresses)}
		for *work == "clients" && len(clients) < *tasks {
			clients = append(clients, connect(*of, addresses))
		}
		key := func(task int) string { return "go/one" }
		if *work == "pairs" {
			key = func(task int) string { return "go/" + strconv.Itoa(task) }
		}
		timed := *tasks == 1 || *work == "contended" || *work == "clients"
		start, end := window()
		result = run(clients, key, *tasks, *work == "pairs", timed, start, end)
	}
	result.Seconds = *seconds
	Must(json.NewEncoder(os.Stdout).Encode(result))
}

// Tasks that acquire and release in a loop. Counts allocations as go test -benchmem does.
func run(clients []Locker, key func(int) string, tasks int, whole, timed bool, start, end time.Time) outcome {
	workers := make([]worker, tasks)
	var done sync.WaitGroup
	for task := range workers {
		done.Add(1)
		go func() {
			defer done.Done()
			workers[task].run(clients[task%len(clients)].Mutex(key(task)), whole, timed, start, end)
		}()
	}
	time.Sleep(time.Until(start))
	cpuBefore, allocationsBefore, bytesBefore := used()
	time.Sleep(time.Until(end))
	cpu, allocations, bytes := used()
	allocations, bytes = allocations-allocationsBefore, bytes-bytesBefore
	done.Wait()
	result := outcome{CPU: cpu - cpuBefore, Waits: []float64{}}
	for _, worker := range workers {
		result.Counts = append(result.Counts, worker.count)
		result.Total += worker.total
		result.Waits = append(result.Waits, worker.waits...)
	}
	if !timed {
		result.Allocations, result.Bytes = &allocations, &bytes
	}
	return result
}

func (w *worker) run(mutex Mutex, whole, timed bool, start, end time.Time) {
	for before := time.Now(); before.Before(end); {
		release := mutex.Acquire()
		acquired := time.Now()
		release()
		after := time.Now()
		w.total++
		if !after.Before(start) && after.Before(end) {
			w.count++
		}
		if timed && !before.Before(start) {
			until := acquired
			if whole {
				until = after
			}
			w.waits = append(w.waits, float64(until.Sub(before))/1e3)
		}
		before = after
	}
}

// One client holds, the other waits; then they change sides.
func handOff(clients []Locker, start, end time.Time) outcome {
	type turn struct {
		release func()
		at      time.Time
	}
	mutexes := []Mutex{clients[0].Mutex("go/one"), clients[1].Mutex("go/one")}
	result := outcome{Total: 1, Waits: []float64{}}
	release := mutexes[0].Acquire()
	for hands := 0; time.Now().Before(end); hands++ {
		turns := make(chan turn, 1)
		go func() {
			release := mutexes[(hands+1)%2].Acquire()
			turns <- turn{release, time.Now()}
		}()
		time.Sleep(time.Duration(4_000+137*(hands%8)) * time.Microsecond)
		released := time.Now()
		release()
		next := <-turns
		release = next.release
		result.Total++
		if !released.Before(start) {
			result.Waits = append(result.Waits, max(0, float64(next.at.Sub(released))/1e3))
		}
	}
	release()
	result.Counts = []uint64{uint64(len(result.Waits))}
	return result
}

func used() (cpu float64, allocations, bytes uint64) {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	var usage syscall.Rusage
	Must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	cpu = float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e3
	return cpu, memory.Mallocs, memory.TotalAlloc
}

// Must panics if there is an error.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}
