// libblkio as a front-end that nobody here wrote: its virtio-blk-vhost-user driver, loaded from Debian's package. The few
// calls of blkio(3) that the tests make, on one thread.

import Foundation
import GuestHarness

final class Blkio {
  /// Where the library is: $VHOST_SWIFTD_BLKIO, or what scripts/setup left in the cache, or the system's.
  private static let library: Int? = {
    let cache = Environment.value("VHOST_SWIFTD_CACHE") ?? Environment.repository + "/.cache"
    let given = Environment.value("VHOST_SWIFTD_BLKIO").map { [$0] } ?? []
    for path in given + [cache + "/blkio/libblkio.so.1", "libblkio.so.1"] {
      if let library = dlopen(path, RTLD_NOW) { return Int(bitPattern: library) }
    }
    return nil
  }()
  static let isPossible = library != nil

  private static func symbol<Function>(_ name: String, _: Function.Type) throws -> Function {
    guard let address = dlsym(UnsafeMutableRawPointer(bitPattern: library ?? 0), name) else {
      throw HarnessError("libblkio has no \(name)")
    }
    return unsafeBitCast(address, to: Function.self)
  }

  struct Region {
    var address: UnsafeMutableRawPointer?
    var length = 0
    var iova: UInt64 = 0
    var offset: Int64 = 0
    var descriptor: Int32 = -1
    var flags: UInt32 = 0
  }
  struct Completion {
    var user: Int = 0
    var message: UnsafePointer<CChar>?
    var result: Int32 = 0
    var padding: (UInt32, UInt32, UInt32) = (0, 0, 0)
  }

  private var handle: OpaquePointer?
  private let region: Region
  let memory: UnsafeMutableRawBufferPointer
  let queues: [OpaquePointer]
  let capacity: UInt64

  /// Connects, starts, and shares `bytes` of memory.
  init(path: String, queues count: Int32, memory bytes: Int) throws {
    typealias Create = @convention(c) (UnsafePointer<CChar>, UnsafeMutablePointer<OpaquePointer?>) -> Int32
    typealias SetText = @convention(c) (OpaquePointer, UnsafePointer<CChar>, UnsafePointer<CChar>) -> Int32
    typealias SetNumber = @convention(c) (OpaquePointer, UnsafePointer<CChar>, Int32) -> Int32
    typealias GetLong =
      @convention(c) (OpaquePointer, UnsafePointer<CChar>, UnsafeMutablePointer<UInt64>) -> Int32
    typealias Plain = @convention(c) (OpaquePointer) -> Int32
    typealias Allocate = @convention(c) (OpaquePointer, UnsafeMutableRawPointer, Int) -> Int32
    typealias Map = @convention(c) (OpaquePointer, UnsafeRawPointer) -> Int32
    typealias Queue = @convention(c) (OpaquePointer, Int32) -> OpaquePointer?
    var made: OpaquePointer?
    try Self.demand("create", Self.symbol("blkio_create", Create.self)("virtio-blk-vhost-user", &made))
    guard let made else { throw HarnessError("libblkio made nothing") }
    handle = made
    try Self.demand("path", Self.symbol("blkio_set_str", SetText.self)(made, "path", path))
    try Self.demand("connect", Self.symbol("blkio_connect", Plain.self)(made))
    try Self.demand("num-queues", Self.symbol("blkio_set_int", SetNumber.self)(made, "num-queues", count))
    try Self.demand("start", Self.symbol("blkio_start", Plain.self)(made))
    var size: UInt64 = 0
    try Self.demand("capacity", Self.symbol("blkio_get_uint64", GetLong.self)(made, "capacity", &size))
    capacity = size
    var region = Region()
    try Self.demand("memory", Self.symbol("blkio_alloc_mem_region", Allocate.self)(made, &region, bytes))
    try Self.demand("mapping", Self.symbol("blkio_map_mem_region", Map.self)(made, &region))
    self.region = region
    memory = UnsafeMutableRawBufferPointer(start: region.address, count: region.length)
    let queue = try Self.symbol("blkio_get_queue", Queue.self)
    queues = try (0..<count).map { index in
      guard let queue = queue(made, index) else { throw HarnessError("libblkio: no queue \(index)") }
      return queue
    }
  }

  deinit {
    typealias Destroy = @convention(c) (UnsafeMutablePointer<OpaquePointer?>) -> Void
    if let destroy = try? Self.symbol("blkio_destroy", Destroy.self) { destroy(&handle) }
  }

  private static func demand(_ what: String, _ result: Int32) throws {
    guard result != 0 else { return }
    let message = try symbol("blkio_get_error_msg", (@convention(c) () -> UnsafePointer<CChar>).self)()
    throw HarnessError("libblkio, \(what): \(String(cString: message)) (\(result))")
  }

  private typealias Transfer =
    @convention(c) (OpaquePointer, UInt64, UnsafeMutableRawPointer?, Int, Int, UInt32) -> Void

  /// Queues a transfer between `offset` of the disk and the same number of bytes of `memory` from `at` on.
  func transfer(writing: Bool, queue: Int, offset: Int, at: Int, count: Int) throws {
    let call = try Self.symbol(writing ? "blkioq_write" : "blkioq_read", Transfer.self)
    call(queues[queue], UInt64(offset), memory.baseAddress.map { $0 + at }, count, 0, 0)
  }

  func flush(queue: Int) throws {
    try Self.symbol("blkioq_flush", (@convention(c) (OpaquePointer, Int, UInt32) -> Void).self)(
      queues[queue], 0, 0)
  }

  func extent(_ name: String, queue: Int, offset: Int, count: Int) throws {
    typealias Extent = @convention(c) (OpaquePointer, UInt64, UInt64, Int, UInt32) -> Void
    try Self.symbol(name, Extent.self)(queues[queue], UInt64(offset), UInt64(count), 0, 0)
  }

  /// Submits what is queued, and waits for so many answers, each of which has to be a good one.
  func wait(queue: Int, _ count: Int) throws {
    typealias Work =
      @convention(c) (
        OpaquePointer, UnsafeMutableRawPointer, Int32, Int32, UnsafeMutablePointer<timespec>
      ) -> Int32
    let work = try Self.symbol("blkioq_do_io", Work.self)
    var left = count
    while left > 0 {
      var time = timespec(tv_sec: 60, tv_nsec: 0)
      var completions = [Completion](repeating: Completion(), count: left)
      let got = work(queues[queue], &completions, 1, Int32(left), &time)
      guard got > 0 else { throw HarnessError("libblkio waits in vain: \(got)") }
      for completion in completions.prefix(Int(got)) where completion.result != 0 {
        throw HarnessError("libblkio: a request came to \(completion.result)")
      }
      left -= Int(got)
    }
  }
}
