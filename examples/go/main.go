// A counter that is kept in a file, by direct mapping, in Go.
//
//	go build -o counter . && ./counter FILE
//
// FILE, on a mapdirect mount, is made if there is none. Each run adds one to the number in it. With a second argument, "wait",
// it stays mapped until somebody breaks the lease.
//
// Go makes its system calls itself, so the preload library cannot serve it: the C library is called by way of cgo. Where it is
// not installed, CGO_CFLAGS=-I…/dist/include and CGO_LDFLAGS="-L…/dist/lib -Wl,-rpath,…/dist/lib" say where it is.
package main

/*
#cgo LDFLAGS: -lmapdirect
#include <mapdirect.h>
#include <sys/mman.h>

static int hear_of_breaks(void) {
  return mapdirect_on_break(mapdirect_hand_over, NULL, MAPDIRECT_INERT);
}
static int map_failed(void *address) {
  return address == MAP_FAILED;
}
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// Mapping is a range of a file whose bytes are the file's physical blocks.
type Mapping struct {
	// Bytes is what is mapped. When the lease has ended it reads as zeros, and what is stored there is lost; it never faults.
	Bytes []byte
	// Broken is closed when the lease is being broken. The receiver has three quarters of the break time for what it has to
	// do, and says Answer then.
	Broken  <-chan struct{}
	answers chan<- struct{}
	address unsafe.Pointer
	length  C.size_t
}

// Map prepares [0, length) of the file and maps it; the file may be closed afterwards. One mapping at a time: whoever has
// several finds out by the address of a break which of them it is about.
func Map(file *os.File, length int) (*Mapping, error) {
	if _, err := C.hear_of_breaks(); err != nil {
		return nil, os.NewSyscallError("mapdirect_on_break", err)
	}
	broken := make(chan struct{})
	answers := make(chan struct{}, 1)
	go func() {
		var what C.struct_mapdirect_break
		for {
			if result, _ := C.mapdirect_wait_break(&what, -1); result == 0 {
				break
			}
		}
		close(broken)
		<-answers
		C.mapdirect_answer_break(&what)
	}()
	bytes := C.size_t(length)
	const lease = C.MAPDIRECT_BREAKABLE | C.MAPDIRECT_PREPARE
	address, err := C.mapdirect_map(nil, bytes, C.PROT_READ|C.PROT_WRITE, C.MAP_SHARED_VALIDATE, C.int(file.Fd()), 0, lease)
	if C.map_failed(address) != 0 {
		return nil, os.NewSyscallError("mapdirect_map", err)
	}
	return &Mapping{unsafe.Slice((*byte)(address), length), broken, answers, address, bytes}, nil
}

// Persist makes what was stored to Bytes durable; EIO or ENOMEM when the lease has ended before.
func (mapping *Mapping) Persist() error {
	if result, err := C.mapdirect_persist(mapping.address, mapping.length); result != 0 {
		return os.NewSyscallError("mapdirect_persist", err)
	}
	return nil
}

// Answer lets the memory go, after Broken.
func (mapping *Mapping) Answer() { mapping.answers <- struct{}{} }

// Release ends the lease. The addresses stay: Go may still have slices of them.
func (mapping *Mapping) Release() error {
	if result, err := C.mapdirect_detach(mapping.address, mapping.length); result != 0 {
		return os.NewSyscallError("mapdirect_detach", err)
	}
	return nil
}

func run(path string, wait bool) error {
	const length = 4096
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := file.Truncate(length); err != nil {
		return err
	}
	mapping, err := Map(file, length)
	file.Close()
	if err != nil {
		return err
	}
	count := binary.LittleEndian.Uint64(mapping.Bytes) + 1
	binary.LittleEndian.PutUint64(mapping.Bytes, count)
	if err := mapping.Persist(); err != nil {
		return err
	}
	fmt.Println(count)
	if wait {
		<-mapping.Broken
		binary.LittleEndian.PutUint64(mapping.Bytes, count+1000) // the last moment
		err := mapping.Persist()
		mapping.Answer()
		for mapping.Bytes[0] != 0 { // until it is taken away
			syscall.Nanosleep(&syscall.Timespec{Nsec: 1_000_000}, nil)
		}
		fmt.Println("taken away")
		return err
	}
	return mapping.Release()
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: counter FILE [wait]")
		os.Exit(2)
	}
	if err := run(os.Args[1], len(os.Args) > 2); err != nil {
		fmt.Fprintln(os.Stderr, "counter:", err)
		os.Exit(1)
	}
}
