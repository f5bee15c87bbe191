// The front-end's side of an IOMMU: serves the misses that a back-end sends over its channel from the arena's page table, and
// takes mappings away. `serve` runs on a thread of the caller's, beside the driver's.

import CLinux
import Glibc
import Synchronization

public final class FrontendIOMMU: Sendable {
  /// What is done about a miss.
  public enum Manner: Sendable {
    /// Updates, and answers.
    case plain
    /// Updates, and never answers.
    case wordless
    /// Neither.
    case silent
  }

  private struct State {
    var manner: Manner
    /// Pages that allow less than everything, by I/O virtual address.
    var rights: [UInt64: UInt8] = [:]
    var misses: UInt64 = 0
    var refused: UInt64 = 0
    /// Misses that were not served, for later.
    var kept: [WireIOTLB] = []
  }
  private let connection: FrontendConnection
  private let channel: BackendChannel
  private let pages: IOPageTable
  private let state: Mutex<State>

  /// For a device whose arena is behind an IOMMU, once it has opened its back-end channel.
  public init(_ device: DeviceDriver, manner: Manner = .plain) throws(FrontendError) {
    guard let pages = device.arena.pages else { throw .wrongState("the arena is behind no IOMMU") }
    guard let channel = device.backendChannel else { throw .notOffered(feature: "a back-end channel") }
    connection = device.connection
    self.channel = channel
    self.pages = pages
    state = Mutex(State(manner: manner))
  }

  /// How many misses came, and how many of them for pages that are not mapped, or not so.
  public var misses: UInt64 { state.withLock { $0.misses } }
  public var refused: UInt64 { state.withLock { $0.refused } }

  /// Serves misses until `stop` was rung, or the channel is gone.
  public func serve(until stop: Doorbell) throws(FrontendError) {
    while true {
      let (asked, stopped) = Deadline(.seconds(3600)).wait(for: POLLIN, on: channel.raw, and: stop.raw)
      if stopped != 0 { return }
      if asked == 0 { continue }
      do {
        try serve(try channel.receive())
      } catch {
        // The channel, or the connection: whoever drives the device notices.
        if case .closed = error { return }
        throw error
      }
    }
  }

  private func serve(_ message: BackendMessage) throws(FrontendError) {
    guard message.request == .iotlbMessage else { return }
    guard message.payload.count == 32 else {
      throw .badReply(
        request: message.request.rawValue, field: "size", value: UInt64(message.payload.count), expected: 32)
    }
    try serve(message, WireIOTLB(message.payload))
  }

  private func serve(_ message: BackendMessage, _ miss: WireIOTLB) throws(FrontendError) {
    guard miss.type == 1 else {
      throw .badReply(request: 1, field: "type", value: UInt64(miss.type), expected: 1)
    }
    let manner = state.withLock { state in
      state.misses += 1
      if state.manner == .silent { state.kept.append(miss) }
      return state.manner
    }
    if manner == .silent { return }
    let isServed = try update(for: miss)
    if manner == .plain, message.needsReply { try channel.reply(to: message, value: isServed ? 0 : 1) }
  }

  /// Sends the page of a miss; false where there is none, or it does not allow as much.
  private func update(for miss: WireIOTLB) throws(FrontendError) -> Bool {
    let page = miss.iova & ~UInt64(IOPageTable.pageBytes - 1)
    let rights = state.withLock { $0.rights[page] ?? 3 }
    guard let user = pages.userAddress(of: page), rights & miss.permission == miss.permission else {
      state.withLock { $0.refused += 1 }
      return false
    }
    try map(page, UInt64(IOPageTable.pageBytes), user: user, rights: rights).accepted(.iotlbMessage)
    return true
  }

  /// Sends an update as it is.
  public func map(
    _ address: UInt64, _ size: UInt64, user: UInt64, rights: UInt8 = 3
  ) throws(FrontendError) -> Ack {
    try connection.sendIOTLB(
      WireIOTLB(iova: address, size: size, userAddress: user, permission: rights, type: 2))
  }

  /// Sends an invalidation as it is: when it is answered nobody uses the range.
  public func invalidate(_ address: UInt64, _ size: UInt64) throws(FrontendError) -> Ack {
    try connection.sendIOTLB(WireIOTLB(iova: address, size: size, userAddress: 0, permission: 0, type: 3))
  }

  /// What whole pages allow from now on: 0 nothing, 1 reading, 2 writing, 3 both. The back-end is told of it by an
  /// invalidation.
  public func protect(_ address: UInt64, _ size: UInt64, rights: UInt8) throws(FrontendError) {
    let page = UInt64(IOPageTable.pageBytes)
    state.withLock { state in
      for at in stride(from: address / page * page, to: address + size, by: IOPageTable.pageBytes) {
        state.rights[at] = rights
      }
    }
    try invalidate(address / page * page, (address % page + size + page - 1) / page * page).accepted(
      .iotlbMessage)
  }

  /// Another manner from now on; misses that a silent time left are served by updates.
  public func change(to manner: Manner) throws(FrontendError) {
    let kept = state.withLock { state in
      state.manner = manner
      defer { state.kept = [] }
      return state.kept
    }
    for miss in kept { _ = try update(for: miss) }
  }
}
