// Which loads are put on which storage, and what is to be reached there (docs/PERFORMANCE.md, "Targets"). The main thread.

import Foundation
import GuestHarness

extension DiskSuite {
  private typealias Entry = (Workload, Targets)

  static func null(quick: Bool) -> DiskSuite {
    let storage = Storage(kind: .null, bytes: 1 << 30)
    var entries: [Entry] = [
      (.with { $0.depth = 1 }, Targets(ratio: 1.5)),
      (.with { $0.depth = 32 }, Targets(ratio: 1.5, processor: 0.25)),
      (.with { $0.depth = 128 }, Targets(ratio: 1.5, processor: 0.25)),
      (.with { ($0.depth, $0.client) = (1, "sleep") }, Targets(median: 15)),
      (.with { $0.client = "sleep" }, .none),
    ]
    if !quick {
      entries += [
        (.with { $0.depth = 8 }, .none),
        (.with { ($0.depth, $0.client) = (8, "sleep") }, .none),
        (.with { ($0.depth, $0.client) = (128, "sleep") }, .none),
        (.with { $0.queues = 2 }, .none),
        (.with { $0.queues = 4 }, .none),
        (.with { $0.operation = "mixed" }, .none),
        (.with { $0.size = 512 }, .none),
      ]
    }
    return DiskSuite(
      name: "null", storage: storage, workloads: entries,
      counted: [
        (Workload(), .atMost(0.1)), (.with { $0.client = "sleep" }, .atMost(0.1)),
        (.with { ($0.depth, $0.client) = (1, "sleep") }, nil),
      ])
  }

  /// A memory file system.
  static func tmpfs(quick: Bool, file: StorageFile, bytes: Int) -> DiskSuite {
    DiskSuite(
      name: "tmpfs", storage: Storage(kind: .file(path: file.path, direct: false), bytes: bytes), file: file,
      workloads: loads(
        quick, depth32: Targets(rate: 1e6, processor: 1.0), depth1: .none),
      counted: [(Workload(), .atMost(0.1)), (.with { $0.operation = "write" }, nil)])
  }

  /// A file of a disk's file system, all of it in the page cache.
  static func cached(quick: Bool, file: StorageFile, bytes: Int) -> DiskSuite {
    DiskSuite(
      name: "cached", storage: Storage(kind: .file(path: file.path, direct: false), bytes: bytes), file: file,
      workloads: loads(quick, depth32: Targets(ratio: 2.5, processor: 2.1), depth1: .none),
      counted: [(Workload(), .atMost(0.1)), (.with { $0.operation = "write" }, nil)])
  }

  /// The same file past the page cache.
  static func direct(quick: Bool, file: StorageFile, bytes: Int) -> DiskSuite {
    DiskSuite(
      name: "direct", storage: Storage(kind: .file(path: file.path, direct: true), bytes: bytes), file: file,
      // Both end where the device does: as fast as the peer, within what such runs scatter.
      workloads: loads(quick, depth32: Targets(ratio: 0.95, processor: 5.0), depth1: Targets(ratio: 0.9)),
      counted: [(Workload(), .atMost(1.1))])
  }

  /// The same, with the driver's memory held in place (`--pin-guest-memory`); the peer has no such thing.
  static func pinned(quick: Bool, file: StorageFile, bytes: Int) -> DiskSuite {
    var entries: [Entry] = [
      (Workload(), .none), (.with { ($0.size, $0.depth, $0.order) = (128 << 10, 8, "sequential") }, .none),
    ]
    if !quick {
      entries += [
        (.with { $0.operation = "write" }, .none),
        (.with { ($0.size, $0.depth, $0.order) = (1 << 20, 4, "sequential") }, .none),
      ]
    }
    return DiskSuite(
      name: "pinned", storage: Storage(kind: .file(path: file.path, direct: true), bytes: bytes), file: file,
      options: ["--pin-guest-memory"], workloads: entries, counted: [(Workload(), .atMost(1.1))])
  }

  private static func loads(_ quick: Bool, depth32: Targets, depth1: Targets) -> [(Workload, Targets)] {
    var entries: [Entry] = [
      (.with { $0.depth = 1 }, depth1),
      (Workload(), depth32),
      (.with { $0.operation = "write" }, .none),
    ]
    if !quick {
      entries += [
        (.with { $0.depth = 8 }, .none),
        (.with { $0.depth = 128 }, .none),
        (.with { ($0.depth, $0.client) = (1, "sleep") }, .none),
        (.with { $0.client = "sleep" }, .none),
        (.with { $0.operation = "mixed" }, .none),
        (.with { $0.size = 512 }, .none),
        (.with { $0.order = "sequential" }, .none),
        (.with { ($0.order, $0.operation) = ("sequential", "write") }, .none),
        (.with { ($0.size, $0.depth, $0.order) = (128 << 10, 8, "sequential") }, .none),
        (
          .with { ($0.size, $0.depth, $0.order, $0.operation) = (128 << 10, 8, "sequential", "write") }, .none
        ),
        (.with { ($0.size, $0.depth, $0.order) = (1 << 20, 4, "sequential") }, .none),
      ]
    }
    return entries
  }
}
