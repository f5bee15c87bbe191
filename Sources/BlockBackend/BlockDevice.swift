// virtio-blk, control side: features, configuration space, the cache mode. Called by the control thread; what the workers
// read of it is atomic.

import CLinux
import DeviceKit
import HostIO
import Synchronization
import VirtQueue

/// A disk. Its data side is `BlockWorker`.
public final class BlockDevice: VirtioDevice {
  /// What an operator decides.
  public struct Options: Sendable {
    /// What GET_ID returns: at most 20 bytes are used.
    public var serial: String
    public var queueLimit: Int
    /// The block size that drivers are told, in bytes; nil: what the storage works in.
    public var blockSize: UInt32?
    /// False: every write is durable when it completes, and the driver is told of no cache.
    public var writeCache = true
    /// False: drivers are not offered DISCARD.
    public var discard = true
    /// Where the storage is full: hold writes until there is room, instead of failing them.
    public var waitsForSpace = false
    /// Hold the guest's memory in place for I/O past the page cache.
    public var pinsMemory = false
    public var lock = ImageLockPolicy()

    public init(serial: String, queueLimit: Int = 64) {
      self.serial = serial
      self.queueLimit = queueLimit
    }
  }

  /// Data segments in a request: with header and status they fill QEMU's default queue of 128. Longer ones are served.
  static let segmentLimit: UInt32 = 126

  public let identity: DeviceIdentity
  public let features: FeatureSet
  let image: BlockImage
  let serial: [UInt8]
  let waitsForSpace: Bool
  public let pinsMemory: Bool
  private let lockPolicy: ImageLockPolicy
  let bounce = BlockBounce()
  /// What the disk may move; `set` is for any thread, at any time.
  public let limiter = RateLimiter()
  private let blockSize: UInt32
  private let writeCache: Bool
  private let capacity: Atomic<UInt64>
  /// The driver's choice: true while writes may stay in a volatile cache until a flush.
  private let writeback = Atomic<Bool>(true)
  /// What workers ask before each write: must it be durable when it completes?
  private let durableWrites = Atomic<Bool>(false)
  private let acknowledged = Atomic<UInt64>(0)

  public init(image: consuming BlockImage, options: Options) {
    identity = DeviceIdentity(
      id: 2, name: "blk", queueLimit: options.queueLimit, counters: BlockCounter.allCases.map(\.name))
    features = Self.features(image, options)
    blockSize = options.blockSize ?? image.limits.logicalBlock
    writeCache = options.writeCache
    waitsForSpace = options.waitsForSpace
    pinsMemory = options.pinsMemory
    lockPolicy = options.lock
    serial = Array(options.serial.utf8.prefix(20))
    capacity = Atomic(image.byteCount / sectorBytes)
    self.image = image
  }

  private static func features(_ image: borrowing BlockImage, _ options: Options) -> FeatureSet {
    var features: FeatureSet = [.segmentLimit, .blockSize, .topology]
    if options.writeCache { features.formUnion([.flush, .cacheMode]) }
    if options.queueLimit > 1 { features.insert(.multiQueue) }
    if image.isReadOnly { return features.union(.readOnly) }
    if image.engine != .null { features.insert(.writeZeroes) }
    if image.limits.discards, options.discard { features.insert(.discard) }
    return features
  }

  /// The disk's size in sectors of 512 bytes.
  public var sectors: UInt64 { capacity.load(ordering: .relaxed) }
  var byteCount: UInt64 { sectors &* sectorBytes }
  var isReadOnly: Bool { image.isReadOnly }
  package var mustBeDurable: Bool { durableWrites.load(ordering: .relaxed) }

  /// A request ends with its I/O, and one that a limit holds back with the time.
  public var supportsIOMMU: Bool { true }
  public var needsHelper: Bool { image.engine != .null }

  /// What its helper does, what a memory file system and the page cache take in place, and a look at the size.
  public var sandboxNeeds: SandboxNeeds {
    guard image.storage != nil else { return SandboxNeeds() }
    return SandboxNeeds(
      calls: [
        .preadv2, .pwritev2, .pread64, .pwrite64, .mincore, .getrusage, .fallocate, .fdatasync, .fsync,
      ],
      controls: Set(
        [clx_BLKGETSIZE64, clx_BLKDISCARD, clx_BLKZEROOUT].map { UInt32(truncatingIfNeeded: $0) }))
  }

  /// Whether the driver chose a feature.
  func has(_ feature: FeatureSet) -> Bool {
    FeatureSet(rawValue: acknowledged.load(ordering: .relaxed)).contains(feature)
  }

  public var descriptors: [Int32] { image.raw.map { [$0] } ?? [] }

  public func readConfig(_ out: inout ConfigWriter) {
    let limits = image.limits
    out.append(sectors)
    out.append(UInt32(0))  // size_max: not offered
    out.append(Self.segmentLimit)
    out.pad(4)  // geometry: not offered
    out.append(blockSize)
    out.append(UInt8(max(1, limits.physicalBlock / blockSize).trailingZeroBitCount))
    out.pad(1)  // alignment_offset
    out.append(UInt16(clamping: max(1, limits.preferred / blockSize)))
    out.append(limits.optimal / blockSize)
    out.append(UInt8(writeback.load(ordering: .relaxed) ? 1 : 0))
    out.pad(1)
    out.append(UInt16(identity.queueLimit))
    // A discard gives whole blocks back; others are no error, and do nothing.
    out.append(features.contains(.discard) ? RangeLimit.discardSectors : 0)
    out.append(features.contains(.discard) ? UInt32(RangeLimit.segments) : 0)
    out.append(max(blockSize, limits.physicalBlock) / UInt32(sectorBytes))
    out.append(features.contains(.writeZeroes) ? RangeLimit.zeroSectors : 0)
    out.append(features.contains(.writeZeroes) ? UInt32(RangeLimit.segments) : 0)
    out.append(UInt8(1))  // write_zeroes_may_unmap
    out.pad(3)
  }

  /// Only `writeback`, one byte at offset 32, is the driver's (virtio 1.3 §5.2.4).
  public func writeConfig(_ bytes: RawSpan, at offset: Int) throws(DeviceError) {
    guard offset == 32, bytes.byteCount == 1 else {
      throw .configRefused(offset: offset, count: bytes.byteCount)
    }
    // SAFETY: one byte is there.
    let value = unsafe bytes.unsafeLoad(as: UInt8.self)
    guard value <= 1 else { throw .configRefused(offset: offset, count: 1) }
    writeback.store(value == 1, ordering: .relaxed)
    settleDurability()
  }

  public func negotiated(_ features: FeatureSet) {
    let before = acknowledged.exchange(features.rawValue, ordering: .relaxed)
    // Sent again on each start by some front-ends: that changes nothing. CONFIG_WCE without FLUSH starts as
    // write-through (virtio 1.3 §5.2.5.2).
    if before != features.rawValue, features.contains(.cacheMode), !features.contains(.flush) {
      writeback.store(false, ordering: .relaxed)
    }
    settleDurability()
  }

  public func reset() {
    writeback.store(true, ordering: .relaxed)
    acknowledged.store(0, ordering: .relaxed)
    settleDurability()
  }

  /// The cache mode: a driver that chose write-through sends no flushes, and does not choose again.
  public var savedState: UInt64 { writeback.load(ordering: .relaxed) ? 1 : 0 }

  public func restore(_ savedState: UInt64?) {
    writeback.store(savedState == 1, ordering: .relaxed)
    settleDurability()
  }

  /// The cache mode is all that a disk takes along.
  public func loadState(_ state: DeviceState) throws(DeviceError) {
    let mode = try state.get(1, as: UInt64.self)
    guard mode <= 1 else { throw .stateRefused("a cache mode of \(mode)") }
    restore(mode)
  }

  /// A driver that can neither flush nor choose gets durable writes; one that chose write-through too.
  /// (virtio 1.3 §5.2.6.2)
  private func settleDurability() {
    let features = FeatureSet(rawValue: acknowledged.load(ordering: .relaxed))
    let volatile =
      features.contains(.cacheMode) ? writeback.load(ordering: .relaxed) : features.contains(.flush)
    durableWrites.store(!volatile || !writeCache, ordering: .relaxed)
  }

  private var lock: ImageLock? {
    guard lockPolicy.isOn, let raw = image.raw else { return nil }
    return ImageLock(raw: raw, shared: image.isReadOnly)
  }

  /// Whether another process writes to the image (or reads it, where we would write), and goes on for as long as a
  /// starting ring would wait.
  public var isInUseElsewhere: Bool {
    guard let lock else { return false }
    return !lock.waitUntilFree(within: lockPolicy.wait)
  }

  public func willRun() throws(DeviceError) {
    guard let lock, !lock.take(within: lockPolicy.wait) else { return }
    throw .startRefused("the image is locked by another process")
  }

  public func didStop() { lock?.release() }

  /// Looks at the storage's size again; true where the disk has another one now. Any thread. A size that is no multiple
  /// of the block size counts down to the last whole block.
  public func refreshSize() -> Bool {
    guard let bytes = image.currentByteCount else { return false }
    let whole = bytes / UInt64(blockSize) * UInt64(blockSize) / sectorBytes
    return capacity.exchange(whole, ordering: .relaxed) != whole
  }

  public func start(_ queue: consuming QueueStart) throws(DeviceError) {
    let size = queue.size
    let file = queue.files.first
    queue.run { [self] in BlockWorker(device: self, file: file, size: size) }
  }
}

/// What a disk counts, by queue.
enum BlockCounter: Int, CaseIterable {
  case reads, writes, flushes, identifications, discards, zeroes
  case bytesRead, bytesWritten
  /// Requests ended with IOERR, with UNSUPP, and without a status for want of a place for one.
  case errors, unsupported, malformed
  /// Short or interrupted operations that were continued.
  case continued
  /// Requests that went through memory of our own for their alignment, and waits for room on the storage.
  case bounced, waits
  /// Requests that were moved along with the one before them, by one operation.
  case merged
  /// Reads that were copied from a mapping of the image.
  case mapped
  /// Flushes that reached the storage.
  case syncs
  /// Requests that had to wait for a rate limit, and for how long in all.
  case throttles, throttledNanoseconds

  var name: String { String(describing: self) }
}
