// What of a device moves with its guest, in fields: written by the device on one machine, read by the same kind of device on
// another. How it travels is the transport's. Values; no thread.

/// A device's own state, field by field. A device numbers its fields itself, from 1, and never gives a number a second meaning.
public struct DeviceState: Sendable, Equatable {
  /// Little-endian, 1 to 1024 bytes each, by number.
  public private(set) var fields: [UInt16: [UInt8]] = [:]

  public init() {}

  /// Sets a field to an integer.
  public mutating func set<T: FixedWidthInteger & Sendable>(_ number: UInt16, _ value: T) {
    var writer = ConfigWriter()
    writer.append(value)
    fields[number] = writer.bytes
  }

  /// Sets a field to bytes. False where it is there already, or no field is so long.
  public mutating func set(_ number: UInt16, bytes: [UInt8]) -> Bool {
    guard fields[number] == nil, (1...1024).contains(bytes.count) else { return false }
    fields[number] = bytes
    return true
  }

  /// A field as an integer; throws where it is missing, or is no integer of this size.
  public func get<T: FixedWidthInteger & Sendable>(_ number: UInt16, as type: T.Type) throws(DeviceError) -> T
  {
    guard let bytes = fields[number], bytes.count == T.bitWidth / 8 else {
      throw .stateRefused("field \(number) is not an integer of \(T.bitWidth) bits")
    }
    return bytes.reversed().reduce(0) { value, byte in
      (T.bitWidth > 8 ? value << 8 : 0) | T(truncatingIfNeeded: byte)
    }
  }
}

extension VirtioDevice {
  /// What survives a restart (`savedState`), for devices with nothing more to tell.
  public func saveState() -> DeviceState {
    var state = DeviceState()
    state.set(1, savedState)
    return state
  }

  public func loadState(_ state: DeviceState) throws(DeviceError) {
    restore(try state.get(1, as: UInt64.self))
  }
}
