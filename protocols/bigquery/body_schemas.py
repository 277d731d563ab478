"""The bodies of requests: which keys each may have, at every depth, and of what type each is.

A key that is not in the table is refused: a key that nobody here knows could change what the request means, and the
service reads keys in two spellings (useLegacySql, use_legacy_sql), of which the table has one. Keys that only answers
have ("~") are accepted from clients that send back what they got, and left out of what goes to the target. A value is
of the type that is documented; null is a key without a value, as the service reads it.

Besides, "~" has a few keys that node puts where the service does not look for them: it ignores them, so they are left
out (dryRun beside the text of a query, location beside the destination of a load).

The text of the table: one object a line, ``Name = type: keys | type: keys``, with the types s (text), b (true or
false), i (an integer, as a number or its digits), n (a number), v (any of these: node's query parameters), * (any
value), ~ (left out), [type], <type> (a map), or the name of another object.

Left out on purpose: Table.model (deprecated, ignored by the service) and JobConfigurationQuery.systemVariables (output
only; as input it could change what names mean).

Source: the public discovery document bigquery v2, revisions 20250528 and 20261009, "schemas".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.core.http.heads import BadRequest
from proxy.core.text import harmless

_SHOWN_LIMIT: Final = 60  # characters of a key in a refusal; ours
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")  # of 64 bits: 20 digits at most
# Items of a list or a map. Source: "Quotas and limits": 10,000 columns, parameters, source URIs.
ITEMS_LIMIT: Final = 10_000
ITEMS_LIMITS: Final = {
    "[InsertRow]": 50_000,  # "Quotas and limits", maximum rows of a request to tabledata.insertAll
    "[TableReference]": 1_200,  # "Quotas and limits", maximum number of source tables of a copy job
    "[QueryParameterValue]": 1_000_000,  # of an array: 10 MB of a request hold no more
}

_TEXT: Final = """
Job = JobConfiguration: configuration | JobReference: jobReference | ~: etag id jobCreationReason kind
    principal_subject selfLink statistics status user_email
JobConfiguration = JobConfigurationTableCopy: copy | b: dryRun | JobConfigurationExtract: extract | i: jobTimeoutMs
    maxSlots | s: jobType reservation | <s>: labels | JobConfigurationLoad: load | JobConfigurationQuery: query
JobConfigurationTableCopy = s: createDisposition destinationExpirationTime operationType writeDisposition |
    EncryptionConfiguration: destinationEncryptionConfiguration | TableReference: destinationTable sourceTable |
    [TableReference]: sourceTables
    | ~: jobId jobPrefix location
EncryptionConfiguration = s: kmsKeyName
TableReference = s: datasetId projectId tableId
JobConfigurationExtract = s: compression destinationFormat destinationUri fieldDelimiter | [s]: destinationUris |
    ModelExtractOptions: modelExtractOptions | b: nativeGeographyExportEnabled printHeader useAvroLogicalTypes |
    SecureContext: secureContext | ModelReference: sourceModel | TableReference: sourceTable
    | ~: jobId jobPrefix location
ModelExtractOptions = i: trialId
SecureContext = <*>: secureParameterEntries
ModelReference = s: datasetId modelId projectId
JobConfigurationLoad = b: allowJaggedRows allowQuotedNewlines autodetect copyFilesOnly createSession
    ignoreUnknownValues preserveAsciiControlCharacters useAvroLogicalTypes | Clustering: clustering | s:
    columnNameCharacterMap createDisposition dateFormat datetimeFormat encoding fieldDelimiter fileSetSpecType
    jsonExtension nullMarker quote referenceFileSchemaUri schemaInline schemaInlineFormat sourceColumnMatch
    sourceFormat timeFormat timeZone timestampFormat writeDisposition | [ConnectionProperty]: connectionProperties |
    [s]: decimalTargetTypes nullMarkers projectionFields schemaUpdateOptions sourceUris | EncryptionConfiguration:
    destinationEncryptionConfiguration | TableReference: destinationTable | DestinationTableProperties:
    destinationTableProperties | HivePartitioningOptions: hivePartitioningOptions | i: maxBadRecords skipLeadingRows
    | ParquetOptions: parquetOptions | RangePartitioning: rangePartitioning | TableSchema: schema |
    TimePartitioning: timePartitioning | [i]: timestampTargetPrecision
    | ~: jobId jobPrefix location
Clustering = [s]: fields
ConnectionProperty = s: key value
DestinationTableProperties = s: description expirationTime friendlyName | <s>: labels
HivePartitioningOptions = s: mode sourceUriPrefix | b: requirePartitionFilter | ~: fields
ParquetOptions = b: enableListInference enumAsString | s: mapTargetType
RangePartitioning = s: field | IntegerRange: range
IntegerRange = i: end interval start
TableSchema = [TableFieldSchema]: fields | ForeignTypeInfo: foreignTypeInfo
TableFieldSchema = Names: categories policyTags | s: collation defaultValueExpression description
    foreignTypeDefinition mode name roundingMode type | GovernanceTags: dataGovernanceTagsInfo | [DataPolicyOption]:
    dataPolicies | DataPolicyList: dataPolicyList | [TableFieldSchema]: fields | GeneratedColumn: generatedColumn |
    i: maxLength precision scale timestampPrecision | ElementType: rangeElementType
Names = [s]: names
GovernanceTags = <s>: dataGovernanceTags
DataPolicyOption = s: name
DataPolicyList = [DataPolicyOption]: dataPolicies
GeneratedColumn = GeneratedExpressionInfo: generatedExpressionInfo | s: generatedMode
GeneratedExpressionInfo = b: asynchronous stored | s: generationExpression
ElementType = s: type
ForeignTypeInfo = s: typeSystem
TimePartitioning = i: expirationMs | s: field type | b: requirePartitionFilter
JobConfigurationQuery = b: allowLargeResults continuous createSession flattenResults preserveNulls useLegacySql
    useQueryCache writeIncrementalResults | Clustering: clustering | [ConnectionProperty]: connectionProperties | s:
    createDisposition parameterMode priority query writeDisposition | DatasetReference: defaultDataset |
    EncryptionConfiguration: destinationEncryptionConfiguration | TableReference: destinationTable | i:
    maximumBillingTier maximumBytesBilled | [QueryParameter]: queryParameters | RangePartitioning: rangePartitioning
    | [s]: schemaUpdateOptions | ScriptOptions: scriptOptions | SecureContext: secureContext |
    <ExternalDataConfiguration>: tableDefinitions | TimePartitioning: timePartitioning |
    [UserDefinedFunctionResource]: userDefinedFunctionResources
    | ~: dryRun jobId jobPrefix location
DatasetReference = s: datasetId projectId
QueryParameter = s: name | QueryParameterType: parameterType | QueryParameterValue: parameterValue
QueryParameterType = QueryParameterType: arrayType rangeElementType | [StructType]: structTypes | i:
    timestampPrecision | s: type
StructType = s: description name | QueryParameterType: type
QueryParameterValue = [QueryParameterValue]: arrayValues | RangeValue: rangeValue | <QueryParameterValue>:
    structValues | v: value
RangeValue = QueryParameterValue: end start
ScriptOptions = s: keyResultStatement | i: statementByteBudget statementTimeoutMs
ExternalDataConfiguration = b: autodetect ignoreUnknownValues | AvroOptions: avroOptions | BigtableOptions:
    bigtableOptions | s: compression connectionId dateFormat datetimeFormat fileSetSpecType jsonExtension
    metadataCacheMode objectMetadata referenceFileSchemaUri sourceFormat timeFormat timeZone timestampFormat |
    CsvOptions: csvOptions | [s]: decimalTargetTypes sourceUris | GoogleSheetsOptions: googleSheetsOptions |
    HivePartitioningOptions: hivePartitioningOptions | JsonOptions: jsonOptions | i: maxBadRecords | ParquetOptions:
    parquetOptions | TableSchema: schema | [i]: timestampTargetPrecision
AvroOptions = b: useAvroLogicalTypes
BigtableOptions = [BigtableColumnFamily]: columnFamilies | b: ignoreUnspecifiedColumnFamilies
    outputColumnFamiliesAsJson readRowkeyAsString
BigtableColumnFamily = [BigtableColumn]: columns | s: encoding familyId type | b: onlyReadLatest |
    BigtableProtoConfig: protoConfig
BigtableColumn = s: encoding fieldName qualifierEncoded qualifierString type | b: onlyReadLatest |
    BigtableProtoConfig: protoConfig
BigtableProtoConfig = s: protoMessageName schemaBundleId
CsvOptions = b: allowJaggedRows allowQuotedNewlines preserveAsciiControlCharacters | s: encoding fieldDelimiter
    nullMarker quote sourceColumnMatch | [s]: nullMarkers | i: skipLeadingRows
GoogleSheetsOptions = s: range | i: skipLeadingRows
JsonOptions = s: encoding
UserDefinedFunctionResource = s: inlineCode resourceUri
JobReference = s: jobId location projectId
QueryRequest = ArrowSerializationOptions: arrowSerializationOptions | [ConnectionProperty]: connectionProperties |
    b: continuous createSession dryRun preserveNulls useLegacySql useQueryCache writeIncrementalResults |
    DatasetReference: defaultDataset | EncryptionConfiguration: destinationEncryptionConfiguration |
    DataFormatOptions: formatOptions | s: jobCreationMode kind location parameterMode query queryResultsFormat
    requestId reservation | i: jobTimeoutMs maxResults maxSlots maximumBytesBilled timeoutMs | <s>: labels |
    [QueryParameter]: queryParameters | SecureContext: secureContext
ArrowSerializationOptions = s: bufferCompression picosTimestampPrecision
DataFormatOptions = s: timestampOutputFormat | b: useInt64Timestamp
Dataset = [Access]: access | DatasetReference: datasetReference | s: defaultCollation defaultRoundingMode
    description friendlyName location storageBillingModel | EncryptionConfiguration: defaultEncryptionConfiguration
    | i: defaultPartitionExpirationMs defaultTableExpirationMs maxTimeTravelHours | ExternalCatalogDatasetOptions:
    externalCatalogDatasetOptions | ExternalDatasetReference: externalDatasetReference | b: isCaseInsensitive | <s>:
    labels resourceTags | LinkedDatasetSource: linkedDatasetSource | ~: catalogSource creationTime etag id kind
    lastModifiedTime linkedDatasetMetadata restrictions satisfiesPzi satisfiesPzs selfLink tags type
Access = Expr: condition | DatasetAccessEntry: dataset | s: domain groupByEmail iamMember role specialGroup
    userByEmail | RoutineReference: routine | TableReference: view
Expr = s: description expression location title
DatasetAccessEntry = DatasetReference: dataset | [s]: targetTypes
RoutineReference = s: datasetId projectId routineId
ExternalCatalogDatasetOptions = s: defaultStorageLocationUri | <s>: parameters
ExternalDatasetReference = s: connection externalSource
LinkedDatasetSource = DatasetReference: sourceDataset
Table = BigLakeConfiguration: biglakeConfiguration | Clustering: clustering | s: defaultCollation
    defaultRoundingMode description friendlyName kind managedTableType maxStaleness | EncryptionConfiguration:
    encryptionConfiguration | i: expirationTime | ExternalCatalogTableOptions: externalCatalogTableOptions |
    ExternalDataConfiguration: externalDataConfiguration | <s>: labels resourceTags | MaterializedViewDefinition:
    materializedView | PartitioningDefinition: partitionDefinition | RangePartitioning: rangePartitioning | b:
    requirePartitionFilter | TableSchema: schema | TableConstraints: tableConstraints | TableReference:
    tableReference | TableReplicationInfo: tableReplicationInfo | TimePartitioning: timePartitioning |
    ViewDefinition: view | ~: cloneDefinition creationTime etag id lastModifiedTime location materializedViewStatus
    model numActiveLogicalBytes numActivePhysicalBytes numBytes numCurrentPhysicalBytes numLongTermBytes
    numLongTermLogicalBytes numLongTermPhysicalBytes numPartitions numPhysicalBytes numRows
    numTimeTravelPhysicalBytes numTotalLogicalBytes numTotalPhysicalBytes replicas restrictions selfLink
    snapshotDefinition streamingBuffer type
BigLakeConfiguration = s: connectionId fileFormat storageUri tableFormat
ExternalCatalogTableOptions = s: connectionId | <s>: parameters | StorageDescriptor: storageDescriptor
StorageDescriptor = s: inputFormat locationUri outputFormat | SerDeInfo: serdeInfo
SerDeInfo = s: name serializationLibrary | <s>: parameters
MaterializedViewDefinition = b: allowNonIncrementalDefinition enableRefresh | s: maxStaleness query | i:
    refreshIntervalMs | ~: lastRefreshTime
PartitioningDefinition = [PartitionedColumn]: partitionedColumn
PartitionedColumn = s: field
TableConstraints = [ForeignKey]: foreignKeys | PrimaryKey: primaryKey
ForeignKey = [ColumnReference]: columnReferences | s: name | TableReference: referencedTable
ColumnReference = s: referencedColumn referencingColumn
PrimaryKey = [s]: columns
TableReplicationInfo = i: replicationIntervalMs | TableReference: sourceTable | ~: replicatedSourceLastRefreshTime
    replicationError replicationStatus
ViewDefinition = [ForeignViewDefinition]: foreignDefinitions | PrivacyPolicy: privacyPolicy | s: query | b:
    useExplicitColumnNames useLegacySql | [UserDefinedFunctionResource]: userDefinedFunctionResources
ForeignViewDefinition = s: dialect query
PrivacyPolicy = AggregationThresholdPolicy: aggregationThresholdPolicy | DifferentialPrivacyPolicy:
    differentialPrivacyPolicy | JoinRestrictionPolicy: joinRestrictionPolicy
AggregationThresholdPolicy = [s]: privacyUnitColumns | i: threshold
DifferentialPrivacyPolicy = n: deltaBudget deltaPerQuery epsilonBudget maxEpsilonPerQuery | i: maxGroupsContributed
    | s: privacyUnitColumn | ~: deltaBudgetRemaining epsilonBudgetRemaining
JoinRestrictionPolicy = [s]: joinAllowedColumns | s: joinCondition
Routine = [Argument]: arguments | s: dataGovernanceType definitionBody description determinismLevel language
    routineType securityMode | ExternalRuntimeOptions: externalRuntimeOptions | [s]: importedLibraries |
    PythonOptions: pythonOptions | RemoteFunctionOptions: remoteFunctionOptions | StandardSqlTableType:
    returnTableType | StandardSqlDataType: returnType | RoutineReference: routineReference | SparkOptions:
    sparkOptions | b: strictMode | ~: buildStatus creationTime etag lastModifiedTime
Argument = s: argumentKind mode name | StandardSqlDataType: dataType | b: isAggregate | StandardSqlTableType:
    tableType
StandardSqlDataType = StandardSqlDataType: arrayElementType rangeElementType | StandardSqlStructType: structType |
    s: typeKind
StandardSqlStructType = [StandardSqlField]: fields
StandardSqlField = s: name | StandardSqlDataType: type
StandardSqlTableType = [StandardSqlField]: columns
ExternalRuntimeOptions = n: containerCpu | s: containerMemory runtimeConnection runtimeVersion | i:
    containerRequestConcurrency maxBatchingRows | [ExternalVolumeMount]: volumeMounts
ExternalVolumeMount = s: mountPath sourcePath
PythonOptions = s: entryPoint | [s]: packages
RemoteFunctionOptions = s: connection endpoint | i: maxBatchingRows | <s>: userDefinedContext
SparkOptions = [s]: archiveUris fileUris jarUris pyFileUris | s: connection containerImage mainClass mainFileUri
    runtimeVersion | <s>: properties
Model = i: bestTrialId expirationTime | s: description friendlyName | EncryptionConfiguration:
    encryptionConfiguration | <s>: labels | ModelReference: modelReference | [TrainingRun]: trainingRuns | ~:
    creationTime defaultTrialId etag featureColumns hparamSearchSpaces hparamTrials labelColumns lastModifiedTime
    location modelType optimalTrialIds remoteModelInfo transformColumns
TrainingRun = s: vertexAiModelId | ~: classLevelGlobalExplanations dataSplitResult evaluationMetrics
    modelLevelGlobalExplanation results startTime trainingOptions trainingStartTime vertexAiModelVersion
RowAccessPolicy = s: filterPredicate | [s]: grantees | RowAccessPolicyReference: rowAccessPolicyReference | ~:
    creationTime etag lastModifiedTime
RowAccessPolicyReference = s: datasetId policyId projectId tableId
TableDataInsertAllRequest = b: ignoreUnknownValues skipInvalidRows | s: kind templateSuffix traceId | [InsertRow]: rows
InsertRow = s: insertId | *: json
UndeleteDatasetRequest = s: deletionTime
SetIamPolicyRequest = Policy: policy | s: updateMask
Policy = [AuditConfig]: auditConfigs | [Binding]: bindings | s: etag | i: version
AuditConfig = [AuditLogConfig]: auditLogConfigs | s: service
AuditLogConfig = [s]: exemptedMembers | s: logType
Binding = Expr: condition | [s]: members | s: role
GetIamPolicyRequest = GetPolicyOptions: options
GetPolicyOptions = i: requestedPolicyVersion
TestIamPermissionsRequest = [s]: permissions
BatchDeleteRowAccessPoliciesRequest = b: force | [s]: policyIds
"""


@dataclass(frozen=True, slots=True)
class _Object:
    """One line of the table: the type of each key, and the keys that are read-only."""

    types: dict[str, str] = field(default_factory=dict)
    read_only: frozenset[str] = frozenset()


def _table() -> dict[str, _Object]:
    found = {}
    for line in re.sub(r"\n\s+", " ", _TEXT.strip()).splitlines():
        name, _, rest = line.partition(" = ")
        types: dict[str, str] = {}
        read_only: frozenset[str] = frozenset()
        for group in rest.split(" | "):
            kind, _, keys = group.partition(": ")
            if kind == "~":
                read_only = frozenset(keys.split())
            else:
                types |= dict.fromkeys(keys.split(), kind)
        found[name] = _Object(types, read_only)
    return found


SCHEMAS: Final = _table()


def check(name: str, value: Any) -> dict[str, Any]:
    """Check an object against a line of the table; return it without its read-only keys. Raises BadRequest.

    Any: a document is its user's own. Depth is the caller's to limit.
    """
    found = _checked(name, value, "the body")
    if not isinstance(found, dict):
        raise BadRequest(400, "the body is no object")
    return found


def _checked(kind: str, value: Any, where: str) -> Any:
    """Check one value that is not null against a type."""
    if kind == "*":
        return value
    if kind[0] == "[":
        if not isinstance(value, list):
            raise BadRequest(400, f"{where} is no list")
        limit = ITEMS_LIMITS.get(kind, ITEMS_LIMIT)
        if len(value) > limit:
            raise BadRequest(400, f"{where} has more than {limit} items")
        if any(each is None for each in value):
            raise BadRequest(400, f"{where} is no list")
        return [_checked(kind[1:-1], each, where) for each in value]
    if kind[0] == "<":
        if not isinstance(value, dict):
            raise BadRequest(400, f"{where} is no object")
        if len(value) > ITEMS_LIMIT:
            raise BadRequest(400, f"{where} has more than {ITEMS_LIMIT} members")
        inner = kind[1:-1]
        return {key: None if each is None else _checked(inner, each, where) for key, each in value.items()}
    plain = _PLAIN.get(kind)
    if plain is None:
        return _object(SCHEMAS[kind], value, where)
    says, test = plain
    if not test(value):
        raise BadRequest(400, f"{where} is no {says}")
    return value


def _object(schema: _Object, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(400, f"{where} is no object")
    found = {}
    for key, each in value.items():
        kind = schema.types.get(key)
        if kind is None:
            if key in schema.read_only:
                continue
            raise BadRequest(400, f"gatecast: {where} has the key {_shown(key)}, which is not known here")
        found[key] = None if each is None else _checked(kind, each, key)
    return found


def _shown(key: str) -> str:
    return f'"{harmless(key[:_SHOWN_LIMIT])}"'


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return _INTEGER.fullmatch(value) is not None
    return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_PLAIN: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "s": ("text", lambda value: isinstance(value, str)),
    "b": ("true or false", lambda value: isinstance(value, bool)),
    "i": ("integer", _is_integer),
    "n": ("number", _is_number),
    "v": ("text or number", lambda value: isinstance(value, str | bool) or _is_number(value)),
}
