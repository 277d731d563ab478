"""The messages of Kubernetes' protobuf that are read: data, generated from the API's definitions.

A field is ``name:number[:type]``. No type: string; else bytes, bool, int, double, time (meta/v1 Time), quantity,
int-or-string, raw (RawExtension), skip (known, and not looked at), other (a message that is not in this table), or the
name of a message. Before the type: ``*`` repeated, ``%`` map of strings to it, ``<`` its fields are in this object.

Numbers are never used twice, so one table reads all versions from 1.3 on. Source: generated.proto of k8s.io/api and
k8s.io/apimachinery v0.37.1; field numbers of group/v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# (API group, kind) -> message; of v1 of the group. DeleteOptions come with any group.
KINDS: Final[Mapping[tuple[str, str], str]] = {
    ("", "Pod"): "Pod",
    ("", "PodTemplate"): "PodTemplate",
    ("", "ReplicationController"): "ReplicationController",
    ("", "Secret"): "Secret",
    ("", "ConfigMap"): "ConfigMap",
    ("", "Service"): "Service",
    ("", "ServiceAccount"): "ServiceAccount",
    ("", "Namespace"): "Namespace",
    ("", "Node"): "Node",
    ("", "PersistentVolumeClaim"): "PersistentVolumeClaim",
    ("", "PersistentVolume"): "PersistentVolume",
    ("", "Binding"): "Binding",
    ("", "Event"): "Event",
    ("", "Endpoints"): "Endpoints",
    ("", "LimitRange"): "LimitRange",
    ("", "ResourceQuota"): "ResourceQuota",
    ("apps", "Deployment"): "apps.Deployment",
    ("apps", "DaemonSet"): "apps.DaemonSet",
    ("apps", "StatefulSet"): "apps.StatefulSet",
    ("apps", "ReplicaSet"): "apps.ReplicaSet",
    ("batch", "Job"): "batch.Job",
    ("batch", "CronJob"): "batch.CronJob",
    ("policy", "Eviction"): "policy.Eviction",
    ("policy", "PodDisruptionBudget"): "policy.PodDisruptionBudget",
    ("rbac.authorization.k8s.io", "Role"): "rbac.Role",
    ("rbac.authorization.k8s.io", "RoleBinding"): "rbac.RoleBinding",
    ("rbac.authorization.k8s.io", "ClusterRole"): "rbac.ClusterRole",
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): "rbac.ClusterRoleBinding",
    ("autoscaling", "Scale"): "autoscaling.Scale",
    ("authentication.k8s.io", "TokenRequest"): "authentication.TokenRequest",
    ("authentication.k8s.io", "TokenReview"): "authentication.TokenReview",
    ("authentication.k8s.io", "SelfSubjectReview"): "authentication.SelfSubjectReview",
    ("authorization.k8s.io", "SelfSubjectAccessReview"): "authorization.SelfSubjectAccessReview",
    ("authorization.k8s.io", "SubjectAccessReview"): "authorization.SubjectAccessReview",
    ("authorization.k8s.io", "LocalSubjectAccessReview"): "authorization.LocalSubjectAccessReview",
    ("authorization.k8s.io", "SelfSubjectRulesReview"): "authorization.SelfSubjectRulesReview",
    ("coordination.k8s.io", "Lease"): "coordination.Lease",
    ("networking.k8s.io", "Ingress"): "networking.Ingress",
    ("networking.k8s.io", "NetworkPolicy"): "networking.NetworkPolicy",
    ("storage.k8s.io", "StorageClass"): "storage.StorageClass",
}

MESSAGES: Final[Mapping[str, str]] = {
    "AWSElasticBlockStoreVolumeSource": "volumeID:1 fsType:2 partition:3:int readOnly:4:bool",
    "Affinity": "nodeAffinity:1:NodeAffinity podAffinity:2:PodAffinity podAntiAffinity:3:PodAntiAffinity",
    "AppArmorProfile": "type:1 localhostProfile:2",
    "AzureDiskVolumeSource": "diskName:1 diskURI:2 cachingMode:3 fsType:4 readOnly:5:bool kind:6",
    "AzureFilePersistentVolumeSource": "secretName:1 shareName:2 readOnly:3:bool secretNamespace:4",
    "AzureFileVolumeSource": "secretName:1 shareName:2 readOnly:3:bool",
    "Binding": "metadata:1:ObjectMeta target:2:ObjectReference",
    "CSIPersistentVolumeSource": (
        "driver:1 volumeHandle:2 readOnly:3:bool fsType:4 volumeAttributes:5:% "
        "controllerPublishSecretRef:6:SecretReference nodeStageSecretRef:7:SecretReference "
        "nodePublishSecretRef:8:SecretReference controllerExpandSecretRef:9:SecretReference "
        "nodeExpandSecretRef:10:SecretReference"
    ),
    "CSIVolumeSource": (
        "driver:1 readOnly:2:bool fsType:3 volumeAttributes:4:% nodePublishSecretRef:5:LocalObjectReference"
    ),
    "Capabilities": "add:1:* drop:2:*",
    "CephFSPersistentVolumeSource": (
        "monitors:1:* path:2 user:3 secretFile:4 secretRef:5:SecretReference readOnly:6:bool"
    ),
    "CephFSVolumeSource": ("monitors:1:* path:2 user:3 secretFile:4 secretRef:5:LocalObjectReference readOnly:6:bool"),
    "CinderPersistentVolumeSource": "volumeID:1 fsType:2 readOnly:3:bool secretRef:4:SecretReference",
    "CinderVolumeSource": "volumeID:1 fsType:2 readOnly:3:bool secretRef:4:LocalObjectReference",
    "ClientIPConfig": "timeoutSeconds:1:int",
    "ClusterTrustBundleProjection": (
        "name:1 signerName:2 labelSelector:3:LabelSelector optional:5:bool path:4 user:6:int"
    ),
    "ConfigMap": "metadata:1:ObjectMeta immutable:4:bool data:2:% binaryData:3:%bytes",
    "ConfigMapEnvSource": "localObjectReference:1:<LocalObjectReference optional:2:bool",
    "ConfigMapKeySelector": "localObjectReference:1:<LocalObjectReference key:2 optional:3:bool",
    "ConfigMapNodeConfigSource": "namespace:1 name:2 uid:3 resourceVersion:4 kubeletConfigKey:5",
    "ConfigMapProjection": "localObjectReference:1:<LocalObjectReference items:2:*KeyToPath optional:4:bool",
    "ConfigMapVolumeSource": (
        "localObjectReference:1:<LocalObjectReference items:2:*KeyToPath defaultMode:3:int optional:4:bool "
        "defaultUser:5:int"
    ),
    "Container": (
        "name:1 image:2 command:3:* args:4:* workingDir:5 ports:6:*ContainerPort envFrom:19:*EnvFromSource "
        "env:7:*EnvVar resources:8:ResourceRequirements resizePolicy:23:*ContainerResizePolicy "
        "restartPolicy:24 restartPolicyRules:25:*ContainerRestartRule volumeMounts:9:*VolumeMount "
        "volumeDevices:21:*VolumeDevice livenessProbe:10:Probe readinessProbe:11:Probe startupProbe:22:Probe "
        "lifecycle:12:Lifecycle terminationMessagePath:13 terminationMessagePolicy:20 imagePullPolicy:14 "
        "securityContext:15:SecurityContext stdin:16:bool stdinOnce:17:bool tty:18:bool"
    ),
    "ContainerPort": "name:1 hostPort:2:int containerPort:3:int protocol:4 hostIP:5",
    "ContainerResizePolicy": "resourceName:1 restartPolicy:2",
    "ContainerRestartRule": "action:1 exitCodes:2:ContainerRestartRuleOnExitCodes",
    "ContainerRestartRuleOnExitCodes": "operator:1 values:2:*int",
    "DeleteOptions": (
        "gracePeriodSeconds:1:int preconditions:2:Preconditions orphanDependents:3:bool propagationPolicy:4 "
        "dryRun:5:* ignoreStoreReadErrorWithClusterBreakingPotential:6:bool"
    ),
    "DownwardAPIProjection": "items:1:*DownwardAPIVolumeFile",
    "DownwardAPIVolumeFile": (
        "path:1 fieldRef:2:ObjectFieldSelector resourceFieldRef:3:ResourceFieldSelector mode:4:int user:5:int"
    ),
    "DownwardAPIVolumeSource": "items:1:*DownwardAPIVolumeFile defaultMode:2:int defaultUser:3:int",
    "EmptyDirVolumeSource": "medium:1 sizeLimit:2:quantity mode:3:int",
    "EndpointAddress": "ip:1 hostname:3 nodeName:4 targetRef:2:ObjectReference",
    "EndpointPort": "name:1 port:2:int protocol:3 appProtocol:4",
    "EndpointSubset": "addresses:1:*EndpointAddress notReadyAddresses:2:*EndpointAddress ports:3:*EndpointPort",
    "Endpoints": "metadata:1:ObjectMeta subsets:2:*EndpointSubset",
    "EnvFromSource": "prefix:1 configMapRef:2:ConfigMapEnvSource secretRef:3:SecretEnvSource",
    "EnvVar": "name:1 value:2 valueFrom:3:EnvVarSource",
    "EnvVarSource": (
        "fieldRef:1:ObjectFieldSelector resourceFieldRef:2:ResourceFieldSelector "
        "configMapKeyRef:3:ConfigMapKeySelector secretKeyRef:4:SecretKeySelector fileKeyRef:5:FileKeySelector"
    ),
    "EphemeralContainer": "ephemeralContainerCommon:1:<EphemeralContainerCommon targetContainerName:2",
    "EphemeralContainerCommon": (
        "name:1 image:2 command:3:* args:4:* workingDir:5 ports:6:*ContainerPort envFrom:19:*EnvFromSource "
        "env:7:*EnvVar resources:8:ResourceRequirements resizePolicy:23:*ContainerResizePolicy "
        "restartPolicy:24 restartPolicyRules:25:*ContainerRestartRule volumeMounts:9:*VolumeMount "
        "volumeDevices:21:*VolumeDevice livenessProbe:10:Probe readinessProbe:11:Probe startupProbe:22:Probe "
        "lifecycle:12:Lifecycle terminationMessagePath:13 terminationMessagePolicy:20 imagePullPolicy:14 "
        "securityContext:15:SecurityContext stdin:16:bool stdinOnce:17:bool tty:18:bool"
    ),
    "EphemeralVolumeSource": "volumeClaimTemplate:1:PersistentVolumeClaimTemplate",
    "Event": (
        "metadata:1:ObjectMeta involvedObject:2:ObjectReference reason:3 message:4 source:5:EventSource "
        "firstTimestamp:6:time lastTimestamp:7:time count:8:int type:9 eventTime:10:time "
        "series:11:EventSeries action:12 related:13:ObjectReference reportingComponent:14 "
        "reportingInstance:15"
    ),
    "EventSeries": "count:1:int lastObservedTime:2:time",
    "EventSource": "component:1 host:2",
    "EvictionResponder": "name:1 priority:2:int",
    "ExecAction": "command:1:*",
    "FCVolumeSource": "targetWWNs:1:* lun:2:int fsType:3 readOnly:4:bool wwids:5:*",
    "FieldSelectorRequirement": "key:1 operator:2 values:3:*",
    "FileKeySelector": "volumeName:1 path:2 key:3 optional:4:bool",
    "FlexPersistentVolumeSource": "driver:1 fsType:2 secretRef:3:SecretReference readOnly:4:bool options:5:%",
    "FlexVolumeSource": "driver:1 fsType:2 secretRef:3:LocalObjectReference readOnly:4:bool options:5:%",
    "FlockerVolumeSource": "datasetName:1 datasetUUID:2",
    "GCEPersistentDiskVolumeSource": "pdName:1 fsType:2 partition:3:int readOnly:4:bool",
    "GRPCAction": "port:1:int service:2 mode:3",
    "GitRepoVolumeSource": "repository:1 revision:2 directory:3",
    "GlusterfsPersistentVolumeSource": "endpoints:1 path:2 readOnly:3:bool endpointsNamespace:4",
    "GlusterfsVolumeSource": "endpoints:1 path:2 readOnly:3:bool",
    "HTTPGetAction": "path:1 port:2:int-or-string host:3 scheme:4 httpHeaders:5:*HTTPHeader protocol:6",
    "HTTPHeader": "name:1 value:2",
    "HostAlias": "ip:1 hostnames:2:*",
    "HostPathVolumeSource": "path:1 type:2",
    "ISCSIPersistentVolumeSource": (
        "targetPortal:1 iqn:2 lun:3:int iscsiInterface:4 fsType:5 readOnly:6:bool portals:7:* "
        "chapAuthDiscovery:8:bool chapAuthSession:11:bool secretRef:10:SecretReference initiatorName:12"
    ),
    "ISCSIVolumeSource": (
        "targetPortal:1 iqn:2 lun:3:int iscsiInterface:4 fsType:5 readOnly:6:bool portals:7:* "
        "chapAuthDiscovery:8:bool chapAuthSession:11:bool secretRef:10:LocalObjectReference initiatorName:12"
    ),
    "ImageVolumeSource": "reference:1 pullPolicy:2",
    "KeyToPath": "key:1 path:2 mode:3:int user:4:int",
    "LabelSelector": "matchLabels:1:% matchExpressions:2:*LabelSelectorRequirement",
    "LabelSelectorRequirement": "key:1 operator:2 values:3:*",
    "Lifecycle": "postStart:1:LifecycleHandler preStop:2:LifecycleHandler stopSignal:3",
    "LifecycleHandler": "exec:1:ExecAction httpGet:2:HTTPGetAction tcpSocket:3:TCPSocketAction sleep:4:SleepAction",
    "LimitRange": "metadata:1:ObjectMeta spec:2:LimitRangeSpec",
    "LimitRangeItem": (
        "type:1 max:2:%quantity min:3:%quantity default:4:%quantity defaultRequest:5:%quantity "
        "maxLimitRequestRatio:6:%quantity"
    ),
    "LimitRangeSpec": "limits:1:*LimitRangeItem",
    "LocalObjectReference": "name:1",
    "LocalVolumeSource": "path:1 fsType:2",
    "ManagedFieldsEntry": (
        "manager:1 operation:2 apiVersion:3 time:4:time fieldsType:6 fieldsV1:7:bytes subresource:8"
    ),
    "NFSVolumeSource": "server:1 path:2 readOnly:3:bool",
    "Namespace": "metadata:1:ObjectMeta spec:2:NamespaceSpec status:3:skip",
    "NamespaceSpec": "finalizers:1:*",
    "Node": "metadata:1:ObjectMeta spec:2:NodeSpec status:3:skip",
    "NodeAffinity": (
        "requiredDuringSchedulingIgnoredDuringExecution:1:NodeSelector "
        "preferredDuringSchedulingIgnoredDuringExecution:2:*PreferredSchedulingTerm"
    ),
    "NodeConfigSource": "configMap:2:ConfigMapNodeConfigSource",
    "NodePodPreemptionPolicy": "disableResizePreemption:1:*",
    "NodeSelector": "nodeSelectorTerms:1:*NodeSelectorTerm",
    "NodeSelectorRequirement": "key:1 operator:2 values:3:*",
    "NodeSelectorTerm": "matchExpressions:1:*NodeSelectorRequirement matchFields:2:*NodeSelectorRequirement",
    "NodeSpec": (
        "podCIDR:1 podCIDRs:7:* providerID:3 unschedulable:4:bool taints:5:*Taint "
        "configSource:6:NodeConfigSource externalID:2 podPreemptionPolicy:8:NodePodPreemptionPolicy"
    ),
    "ObjectFieldSelector": "apiVersion:1 fieldPath:2",
    "ObjectMeta": (
        "name:1 generateName:2 namespace:3 selfLink:4 uid:5 resourceVersion:6 generation:7:int "
        "creationTimestamp:8:time deletionTimestamp:9:time deletionGracePeriodSeconds:10:int labels:11:% "
        "annotations:12:% ownerReferences:13:*OwnerReference finalizers:14:* "
        "managedFields:17:*ManagedFieldsEntry"
    ),
    "ObjectReference": "kind:1 namespace:2 name:3 uid:4 apiVersion:5 resourceVersion:6 fieldPath:7",
    "OwnerReference": "apiVersion:5 kind:1 name:3 uid:4 controller:6:bool blockOwnerDeletion:7:bool",
    "PersistentVolume": "metadata:1:ObjectMeta spec:2:PersistentVolumeSpec status:3:skip",
    "PersistentVolumeClaim": "metadata:1:ObjectMeta spec:2:PersistentVolumeClaimSpec status:3:skip",
    "PersistentVolumeClaimSpec": (
        "accessModes:1:* selector:4:LabelSelector resources:2:VolumeResourceRequirements volumeName:3 "
        "storageClassName:5 volumeMode:6 dataSource:7:TypedLocalObjectReference "
        "dataSourceRef:8:TypedObjectReference volumeAttributesClassName:9"
    ),
    "PersistentVolumeClaimTemplate": "metadata:1:ObjectMeta spec:2:PersistentVolumeClaimSpec",
    "PersistentVolumeClaimVolumeSource": "claimName:1 readOnly:2:bool",
    "PersistentVolumeSource": (
        "gcePersistentDisk:1:GCEPersistentDiskVolumeSource "
        "awsElasticBlockStore:2:AWSElasticBlockStoreVolumeSource hostPath:3:HostPathVolumeSource "
        "glusterfs:4:GlusterfsPersistentVolumeSource nfs:5:NFSVolumeSource rbd:6:RBDPersistentVolumeSource "
        "iscsi:7:ISCSIPersistentVolumeSource cinder:8:CinderPersistentVolumeSource "
        "cephfs:9:CephFSPersistentVolumeSource fc:10:FCVolumeSource flocker:11:FlockerVolumeSource "
        "flexVolume:12:FlexPersistentVolumeSource azureFile:13:AzureFilePersistentVolumeSource "
        "vsphereVolume:14:VsphereVirtualDiskVolumeSource quobyte:15:QuobyteVolumeSource "
        "azureDisk:16:AzureDiskVolumeSource photonPersistentDisk:17:PhotonPersistentDiskVolumeSource "
        "portworxVolume:18:PortworxVolumeSource scaleIO:19:ScaleIOPersistentVolumeSource "
        "local:20:LocalVolumeSource storageos:21:StorageOSPersistentVolumeSource "
        "csi:22:CSIPersistentVolumeSource"
    ),
    "PersistentVolumeSpec": (
        "capacity:1:%quantity persistentVolumeSource:2:<PersistentVolumeSource accessModes:3:* "
        "claimRef:4:ObjectReference persistentVolumeReclaimPolicy:5 storageClassName:6 mountOptions:7:* "
        "volumeMode:8 nodeAffinity:9:VolumeNodeAffinity volumeAttributesClassName:10"
    ),
    "PhotonPersistentDiskVolumeSource": "pdID:1 fsType:2",
    "Pod": "metadata:1:ObjectMeta spec:2:PodSpec status:3:skip",
    "PodAffinity": (
        "requiredDuringSchedulingIgnoredDuringExecution:1:*PodAffinityTerm "
        "preferredDuringSchedulingIgnoredDuringExecution:2:*WeightedPodAffinityTerm"
    ),
    "PodAffinityTerm": (
        "labelSelector:1:LabelSelector namespaces:2:* topologyKey:3 namespaceSelector:4:LabelSelector "
        "matchLabelKeys:5:* mismatchLabelKeys:6:*"
    ),
    "PodAntiAffinity": (
        "requiredDuringSchedulingIgnoredDuringExecution:1:*PodAffinityTerm "
        "preferredDuringSchedulingIgnoredDuringExecution:2:*WeightedPodAffinityTerm"
    ),
    "PodCertificateProjection": (
        "signerName:1 keyType:2 maxExpirationSeconds:3:int credentialBundlePath:4 keyPath:5 "
        "certificateChainPath:6 userAnnotations:7:% user:8:int"
    ),
    "PodDNSConfig": "nameservers:1:* searches:2:* options:3:*PodDNSConfigOption",
    "PodDNSConfigOption": "name:1 value:2",
    "PodOS": "name:1",
    "PodReadinessGate": "conditionType:1",
    "PodResourceClaim": "name:1 resourceClaimName:3 resourceClaimTemplateName:4",
    "PodSchedulingGate": "name:1",
    "PodSchedulingGroup": "podGroupName:1",
    "PodSecurityContext": (
        "seLinuxOptions:1:SELinuxOptions windowsOptions:8:WindowsSecurityContextOptions runAsUser:2:int "
        "runAsGroup:6:int runAsNonRoot:3:bool supplementalGroups:4:*int supplementalGroupsPolicy:12 "
        "fsGroup:5:int sysctls:7:*Sysctl fsGroupChangePolicy:9 seccompProfile:10:SeccompProfile "
        "appArmorProfile:11:AppArmorProfile seLinuxChangePolicy:13"
    ),
    "PodSpec": (
        "volumes:1:*Volume initContainers:20:*Container containers:2:*Container "
        "ephemeralContainers:34:*EphemeralContainer restartPolicy:3 terminationGracePeriodSeconds:4:int "
        "activeDeadlineSeconds:5:int dnsPolicy:6 nodeSelector:7:% serviceAccountName:8 serviceAccount:9 "
        "automountServiceAccountToken:21:bool nodeName:10 hostNetwork:11:bool hostPID:12:bool hostIPC:13:bool "
        "shareProcessNamespace:27:bool securityContext:14:PodSecurityContext "
        "imagePullSecrets:15:*LocalObjectReference hostname:16 subdomain:17 affinity:18:Affinity "
        "schedulerName:19 tolerations:22:*Toleration hostAliases:23:*HostAlias priorityClassName:24 "
        "priority:25:int dnsConfig:26:PodDNSConfig readinessGates:28:*PodReadinessGate runtimeClassName:29 "
        "enableServiceLinks:30:bool preemptionPolicy:31 overhead:32:%quantity "
        "topologySpreadConstraints:33:*TopologySpreadConstraint setHostnameAsFQDN:35:bool os:36:PodOS "
        "hostUsers:37:bool schedulingGates:38:*PodSchedulingGate resourceClaims:39:*PodResourceClaim "
        "resources:40:ResourceRequirements hostnameOverride:41 schedulingGroup:43:PodSchedulingGroup "
        "evictionResponders:44:*EvictionResponder"
    ),
    "PodTemplate": "metadata:1:ObjectMeta template:2:PodTemplateSpec",
    "PodTemplateSpec": "metadata:1:ObjectMeta spec:2:PodSpec",
    "PortworxVolumeSource": "volumeID:1 fsType:2 readOnly:3:bool",
    "Preconditions": "uid:1 resourceVersion:2",
    "PreferredSchedulingTerm": "weight:1:int preference:2:NodeSelectorTerm",
    "Probe": (
        "handler:1:<ProbeHandler initialDelaySeconds:2:int timeoutSeconds:3:int periodSeconds:4:int "
        "successThreshold:5:int failureThreshold:6:int terminationGracePeriodSeconds:7:int"
    ),
    "ProbeHandler": "exec:1:ExecAction httpGet:2:HTTPGetAction tcpSocket:3:TCPSocketAction grpc:4:GRPCAction",
    "ProjectedVolumeSource": "sources:1:*VolumeProjection defaultMode:2:int defaultUser:3:int",
    "QuobyteVolumeSource": "registry:1 volume:2 readOnly:3:bool user:4 group:5 tenant:6",
    "RBDPersistentVolumeSource": (
        "monitors:1:* image:2 fsType:3 pool:4 user:5 keyring:6 secretRef:7:SecretReference readOnly:8:bool"
    ),
    "RBDVolumeSource": (
        "monitors:1:* image:2 fsType:3 pool:4 user:5 keyring:6 secretRef:7:LocalObjectReference readOnly:8:bool"
    ),
    "ReplicationController": "metadata:1:ObjectMeta spec:2:ReplicationControllerSpec status:3:skip",
    "ReplicationControllerSpec": "replicas:1:int minReadySeconds:4:int selector:2:% template:3:PodTemplateSpec",
    "ResourceClaim": "name:1 request:2",
    "ResourceFieldSelector": "containerName:1 resource:2 divisor:3:quantity",
    "ResourceQuota": "metadata:1:ObjectMeta spec:2:ResourceQuotaSpec status:3:skip",
    "ResourceQuotaSpec": "hard:1:%quantity scopes:2:* scopeSelector:3:ScopeSelector",
    "ResourceRequirements": "limits:1:%quantity requests:2:%quantity claims:3:*ResourceClaim",
    "SELinuxOptions": "user:1 role:2 type:3 level:4",
    "ScaleIOPersistentVolumeSource": (
        "gateway:1 system:2 secretRef:3:SecretReference sslEnabled:4:bool protectionDomain:5 storagePool:6 "
        "storageMode:7 volumeName:8 fsType:9 readOnly:10:bool"
    ),
    "ScaleIOVolumeSource": (
        "gateway:1 system:2 secretRef:3:LocalObjectReference sslEnabled:4:bool protectionDomain:5 "
        "storagePool:6 storageMode:7 volumeName:8 fsType:9 readOnly:10:bool"
    ),
    "ScopeSelector": "matchExpressions:1:*ScopedResourceSelectorRequirement",
    "ScopedResourceSelectorRequirement": "scopeName:1 operator:2 values:3:*",
    "SeccompProfile": "type:1 localhostProfile:2",
    "Secret": "metadata:1:ObjectMeta immutable:5:bool data:2:%bytes stringData:4:% type:3",
    "SecretEnvSource": "localObjectReference:1:<LocalObjectReference optional:2:bool",
    "SecretKeySelector": "localObjectReference:1:<LocalObjectReference key:2 optional:3:bool",
    "SecretProjection": "localObjectReference:1:<LocalObjectReference items:2:*KeyToPath optional:4:bool",
    "SecretReference": "name:1 namespace:2",
    "SecretVolumeSource": "secretName:1 items:2:*KeyToPath defaultMode:3:int optional:4:bool defaultUser:5:int",
    "SecurityContext": (
        "capabilities:1:Capabilities privileged:2:bool seLinuxOptions:3:SELinuxOptions "
        "windowsOptions:10:WindowsSecurityContextOptions runAsUser:4:int runAsGroup:8:int runAsNonRoot:5:bool "
        "readOnlyRootFilesystem:6:bool allowPrivilegeEscalation:7:bool procMount:9 "
        "seccompProfile:11:SeccompProfile appArmorProfile:12:AppArmorProfile"
    ),
    "Service": "metadata:1:ObjectMeta spec:2:ServiceSpec status:3:skip",
    "ServiceAccount": (
        "metadata:1:ObjectMeta secrets:2:*ObjectReference imagePullSecrets:3:*LocalObjectReference "
        "automountServiceAccountToken:4:bool"
    ),
    "ServiceAccountTokenProjection": "audience:1 expirationSeconds:2:int path:3 user:4:int",
    "ServicePort": "name:1 protocol:2 appProtocol:6 port:3:int targetPort:4:int-or-string nodePort:5:int",
    "ServiceSpec": (
        "ports:1:*ServicePort selector:2:% clusterIP:3 clusterIPs:18:* type:4 externalIPs:5:* "
        "sessionAffinity:7 loadBalancerIP:8 loadBalancerSourceRanges:9:* externalName:10 "
        "externalTrafficPolicy:11 healthCheckNodePort:12:int publishNotReadyAddresses:13:bool "
        "sessionAffinityConfig:14:SessionAffinityConfig ipFamilies:19:* ipFamilyPolicy:17 "
        "allocateLoadBalancerNodePorts:20:bool loadBalancerClass:21 internalTrafficPolicy:22 "
        "trafficDistribution:23"
    ),
    "SessionAffinityConfig": "clientIP:1:ClientIPConfig",
    "SleepAction": "seconds:1:int",
    "StorageOSPersistentVolumeSource": (
        "volumeName:1 volumeNamespace:2 fsType:3 readOnly:4:bool secretRef:5:ObjectReference"
    ),
    "StorageOSVolumeSource": (
        "volumeName:1 volumeNamespace:2 fsType:3 readOnly:4:bool secretRef:5:LocalObjectReference"
    ),
    "Sysctl": "name:1 value:2",
    "TCPSocketAction": "port:1:int-or-string host:2",
    "Taint": "key:1 value:2 effect:3 timeAdded:4:time",
    "Toleration": "key:1 operator:2 value:3 effect:4 tolerationSeconds:5:int",
    "TopologySelectorLabelRequirement": "key:1 values:2:*",
    "TopologySelectorTerm": "matchLabelExpressions:1:*TopologySelectorLabelRequirement",
    "TopologySpreadConstraint": (
        "maxSkew:1:int topologyKey:2 whenUnsatisfiable:3 labelSelector:4:LabelSelector minDomains:5:int "
        "nodeAffinityPolicy:6 nodeTaintsPolicy:7 matchLabelKeys:8:*"
    ),
    "TypedLocalObjectReference": "apiGroup:1 kind:2 name:3",
    "TypedObjectReference": "apiGroup:1 kind:2 name:3 namespace:4",
    "Volume": "name:1 volumeSource:2:<VolumeSource",
    "VolumeDevice": "name:1 devicePath:2",
    "VolumeMount": (
        "name:1 readOnly:2:bool recursiveReadOnly:7 mountPath:3 subPath:4 mountPropagation:5 subPathExpr:6 "
        "bindMountOptions:8:*"
    ),
    "VolumeNodeAffinity": "required:1:NodeSelector",
    "VolumeProjection": (
        "secret:1:SecretProjection downwardAPI:2:DownwardAPIProjection configMap:3:ConfigMapProjection "
        "serviceAccountToken:4:ServiceAccountTokenProjection "
        "clusterTrustBundle:5:ClusterTrustBundleProjection podCertificate:6:PodCertificateProjection"
    ),
    "VolumeResourceRequirements": "limits:1:%quantity requests:2:%quantity",
    "VolumeSource": (
        "hostPath:1:HostPathVolumeSource emptyDir:2:EmptyDirVolumeSource "
        "gcePersistentDisk:3:GCEPersistentDiskVolumeSource "
        "awsElasticBlockStore:4:AWSElasticBlockStoreVolumeSource gitRepo:5:GitRepoVolumeSource "
        "secret:6:SecretVolumeSource nfs:7:NFSVolumeSource iscsi:8:ISCSIVolumeSource "
        "glusterfs:9:GlusterfsVolumeSource persistentVolumeClaim:10:PersistentVolumeClaimVolumeSource "
        "rbd:11:RBDVolumeSource flexVolume:12:FlexVolumeSource cinder:13:CinderVolumeSource "
        "cephfs:14:CephFSVolumeSource flocker:15:FlockerVolumeSource downwardAPI:16:DownwardAPIVolumeSource "
        "fc:17:FCVolumeSource azureFile:18:AzureFileVolumeSource configMap:19:ConfigMapVolumeSource "
        "vsphereVolume:20:VsphereVirtualDiskVolumeSource quobyte:21:QuobyteVolumeSource "
        "azureDisk:22:AzureDiskVolumeSource photonPersistentDisk:23:PhotonPersistentDiskVolumeSource "
        "projected:26:ProjectedVolumeSource portworxVolume:24:PortworxVolumeSource "
        "scaleIO:25:ScaleIOVolumeSource storageos:27:StorageOSVolumeSource csi:28:CSIVolumeSource "
        "ephemeral:29:EphemeralVolumeSource image:30:ImageVolumeSource"
    ),
    "VsphereVirtualDiskVolumeSource": "volumePath:1 fsType:2 storagePolicyName:3 storagePolicyID:4",
    "WeightedPodAffinityTerm": "weight:1:int podAffinityTerm:2:PodAffinityTerm",
    "WindowsSecurityContextOptions": (
        "gmsaCredentialSpecName:1 gmsaCredentialSpec:2 runAsUserName:3 hostProcess:4:bool"
    ),
    "apps.DaemonSet": "metadata:1:ObjectMeta spec:2:apps.DaemonSetSpec status:3:skip",
    "apps.DaemonSetSpec": (
        "selector:1:LabelSelector template:2:PodTemplateSpec updateStrategy:3:apps.DaemonSetUpdateStrategy "
        "minReadySeconds:4:int revisionHistoryLimit:6:int"
    ),
    "apps.DaemonSetUpdateStrategy": "type:1 rollingUpdate:2:apps.RollingUpdateDaemonSet",
    "apps.Deployment": "metadata:1:ObjectMeta spec:2:apps.DeploymentSpec status:3:skip",
    "apps.DeploymentSpec": (
        "replicas:1:int selector:2:LabelSelector template:3:PodTemplateSpec "
        "strategy:4:apps.DeploymentStrategy minReadySeconds:5:int revisionHistoryLimit:6:int paused:7:bool "
        "progressDeadlineSeconds:9:int"
    ),
    "apps.DeploymentStrategy": "type:1 rollingUpdate:2:apps.RollingUpdateDeployment",
    "apps.ReplicaSet": "metadata:1:ObjectMeta spec:2:apps.ReplicaSetSpec status:3:skip",
    "apps.ReplicaSetSpec": ("replicas:1:int minReadySeconds:4:int selector:2:LabelSelector template:3:PodTemplateSpec"),
    "apps.RollingUpdateDaemonSet": "maxUnavailable:1:int-or-string maxSurge:2:int-or-string",
    "apps.RollingUpdateDeployment": "maxUnavailable:1:int-or-string maxSurge:2:int-or-string",
    "apps.RollingUpdateStatefulSetStrategy": "partition:1:int maxUnavailable:2:int-or-string",
    "apps.StatefulSet": "metadata:1:ObjectMeta spec:2:apps.StatefulSetSpec status:3:skip",
    "apps.StatefulSetOrdinals": "start:1:int",
    "apps.StatefulSetPersistentVolumeClaimRetentionPolicy": "whenDeleted:1 whenScaled:2",
    "apps.StatefulSetSpec": (
        "replicas:1:int selector:2:LabelSelector template:3:PodTemplateSpec "
        "volumeClaimTemplates:4:*PersistentVolumeClaim serviceName:5 podManagementPolicy:6 "
        "updateStrategy:7:apps.StatefulSetUpdateStrategy revisionHistoryLimit:8:int minReadySeconds:9:int "
        "persistentVolumeClaimRetentionPolicy:10:apps.StatefulSetPersistentVolumeClaimRetentionPolicy "
        "ordinals:11:apps.StatefulSetOrdinals"
    ),
    "apps.StatefulSetUpdateStrategy": "type:1 rollingUpdate:2:apps.RollingUpdateStatefulSetStrategy",
    "authentication.AttestationValue": "items:1:*",
    "authentication.BoundObjectReference": "kind:1 apiVersion:2 name:3 uID:4",
    "authentication.SelfSubjectReview": "metadata:1:ObjectMeta status:2:skip",
    "authentication.TokenRequest": "metadata:1:ObjectMeta spec:2:authentication.TokenRequestSpec status:3:skip",
    "authentication.TokenRequestSpec": (
        "audiences:1:* expirationSeconds:4:int boundObjectRef:3:authentication.BoundObjectReference "
        "attestations:5:%authentication.AttestationValue"
    ),
    "authentication.TokenReview": "metadata:1:ObjectMeta spec:2:authentication.TokenReviewSpec status:3:skip",
    "authentication.TokenReviewSpec": "token:1 audiences:2:*",
    "authorization.ExtraValue": "items:1:*",
    "authorization.FieldSelectorAttributes": "rawSelector:1 requirements:2:*FieldSelectorRequirement",
    "authorization.LabelSelectorAttributes": "rawSelector:1 requirements:2:*LabelSelectorRequirement",
    "authorization.LocalSubjectAccessReview": (
        "metadata:1:ObjectMeta spec:2:authorization.SubjectAccessReviewSpec status:3:skip"
    ),
    "authorization.NonResourceAttributes": "path:1 verb:2",
    "authorization.ResourceAttributes": (
        "namespace:1 verb:2 group:3 version:4 resource:5 subresource:6 name:7 "
        "fieldSelector:8:authorization.FieldSelectorAttributes "
        "labelSelector:9:authorization.LabelSelectorAttributes"
    ),
    "authorization.SelfSubjectAccessReview": (
        "metadata:1:ObjectMeta spec:2:authorization.SelfSubjectAccessReviewSpec status:3:skip"
    ),
    "authorization.SelfSubjectAccessReviewSpec": (
        "resourceAttributes:1:authorization.ResourceAttributes "
        "nonResourceAttributes:2:authorization.NonResourceAttributes"
    ),
    "authorization.SelfSubjectRulesReview": (
        "metadata:1:ObjectMeta spec:2:authorization.SelfSubjectRulesReviewSpec status:3:skip"
    ),
    "authorization.SelfSubjectRulesReviewSpec": "namespace:1",
    "authorization.SubjectAccessReview": (
        "metadata:1:ObjectMeta spec:2:authorization.SubjectAccessReviewSpec status:3:skip"
    ),
    "authorization.SubjectAccessReviewSpec": (
        "resourceAttributes:1:authorization.ResourceAttributes "
        "nonResourceAttributes:2:authorization.NonResourceAttributes user:3 groups:4:* "
        "extra:5:%authorization.ExtraValue uid:6"
    ),
    "autoscaling.Scale": "metadata:1:ObjectMeta spec:2:autoscaling.ScaleSpec status:3:skip",
    "autoscaling.ScaleSpec": "replicas:1:int",
    "batch.CronJob": "metadata:1:ObjectMeta spec:2:batch.CronJobSpec status:3:skip",
    "batch.CronJobSpec": (
        "schedule:1 timeZone:8 startingDeadlineSeconds:2:int concurrencyPolicy:3 suspend:4:bool "
        "jobTemplate:5:batch.JobTemplateSpec successfulJobsHistoryLimit:6:int failedJobsHistoryLimit:7:int"
    ),
    "batch.Job": "metadata:1:ObjectMeta spec:2:batch.JobSpec status:3:skip",
    "batch.JobSchedulingConfiguration": (
        "schedulingPolicy:1:other schedulingConstraints:2:other disruptionMode:3:other resourceClaims:4:*other"
    ),
    "batch.JobSpec": (
        "parallelism:1:int completions:2:int activeDeadlineSeconds:3:int "
        "podFailurePolicy:11:batch.PodFailurePolicy successPolicy:16:batch.SuccessPolicy backoffLimit:7:int "
        "backoffLimitPerIndex:12:int maxFailedIndexes:13:int selector:4:LabelSelector manualSelector:5:bool "
        "template:6:PodTemplateSpec ttlSecondsAfterFinished:8:int completionMode:9 suspend:10:bool "
        "podReplacementPolicy:14 managedBy:15 scheduling:17:batch.JobSchedulingConfiguration"
    ),
    "batch.JobTemplateSpec": "metadata:1:ObjectMeta spec:2:batch.JobSpec",
    "batch.PodFailurePolicy": "rules:1:*batch.PodFailurePolicyRule",
    "batch.PodFailurePolicyOnExitCodesRequirement": "containerName:1 operator:2 values:3:*int",
    "batch.PodFailurePolicyOnPodConditionsPattern": "type:1 status:2",
    "batch.PodFailurePolicyRule": (
        "action:1 onExitCodes:2:batch.PodFailurePolicyOnExitCodesRequirement "
        "onPodConditions:3:*batch.PodFailurePolicyOnPodConditionsPattern"
    ),
    "batch.SuccessPolicy": "rules:1:*batch.SuccessPolicyRule",
    "batch.SuccessPolicyRule": "succeededIndexes:1 succeededCount:2:int",
    "coordination.Lease": "metadata:1:ObjectMeta spec:2:coordination.LeaseSpec",
    "coordination.LeaseSpec": (
        "holderIdentity:1 leaseDurationSeconds:2:int acquireTime:3:time renewTime:4:time "
        "leaseTransitions:5:int strategy:6 preferredHolder:7"
    ),
    "networking.HTTPIngressPath": "path:1 pathType:3 backend:2:networking.IngressBackend",
    "networking.HTTPIngressRuleValue": "paths:1:*networking.HTTPIngressPath",
    "networking.IPBlock": "cidr:1 except:2:*",
    "networking.Ingress": "metadata:1:ObjectMeta spec:2:networking.IngressSpec status:3:skip",
    "networking.IngressBackend": "service:4:networking.IngressServiceBackend resource:3:TypedLocalObjectReference",
    "networking.IngressRule": "host:1 ingressRuleValue:2:networking.IngressRuleValue",
    "networking.IngressRuleValue": "http:1:networking.HTTPIngressRuleValue",
    "networking.IngressServiceBackend": "name:1 port:2:networking.ServiceBackendPort",
    "networking.IngressSpec": (
        "ingressClassName:4 defaultBackend:1:networking.IngressBackend tls:2:*networking.IngressTLS "
        "rules:3:*networking.IngressRule"
    ),
    "networking.IngressTLS": "hosts:1:* secretName:2",
    "networking.NetworkPolicy": "metadata:1:ObjectMeta spec:2:networking.NetworkPolicySpec",
    "networking.NetworkPolicyEgressRule": ("ports:1:*networking.NetworkPolicyPort to:2:*networking.NetworkPolicyPeer"),
    "networking.NetworkPolicyIngressRule": (
        "ports:1:*networking.NetworkPolicyPort from:2:*networking.NetworkPolicyPeer"
    ),
    "networking.NetworkPolicyPeer": (
        "podSelector:1:LabelSelector namespaceSelector:2:LabelSelector ipBlock:3:networking.IPBlock"
    ),
    "networking.NetworkPolicyPort": "protocol:1 port:2:int-or-string endPort:3:int",
    "networking.NetworkPolicySpec": (
        "podSelector:1:LabelSelector ingress:2:*networking.NetworkPolicyIngressRule "
        "egress:3:*networking.NetworkPolicyEgressRule policyTypes:4:*"
    ),
    "networking.ServiceBackendPort": "name:1 number:2:int",
    "policy.Eviction": "metadata:1:ObjectMeta deleteOptions:2:DeleteOptions",
    "policy.PodDisruptionBudget": "metadata:1:ObjectMeta spec:2:policy.PodDisruptionBudgetSpec status:3:skip",
    "policy.PodDisruptionBudgetSpec": (
        "minAvailable:1:int-or-string selector:2:LabelSelector maxUnavailable:3:int-or-string "
        "unhealthyPodEvictionPolicy:4"
    ),
    "rbac.AggregationRule": "clusterRoleSelectors:1:*LabelSelector",
    "rbac.ClusterRole": "metadata:1:ObjectMeta rules:2:*rbac.PolicyRule aggregationRule:3:rbac.AggregationRule",
    "rbac.ClusterRoleBinding": "metadata:1:ObjectMeta subjects:2:*rbac.Subject roleRef:3:rbac.RoleRef",
    "rbac.PolicyRule": "verbs:1:* apiGroups:2:* resources:3:* resourceNames:4:* nonResourceURLs:5:*",
    "rbac.Role": "metadata:1:ObjectMeta rules:2:*rbac.PolicyRule",
    "rbac.RoleBinding": "metadata:1:ObjectMeta subjects:2:*rbac.Subject roleRef:3:rbac.RoleRef",
    "rbac.RoleRef": "apiGroup:1 kind:2 name:3",
    "rbac.Subject": "kind:1 apiGroup:2 name:3 namespace:4",
    "storage.StorageClass": (
        "metadata:1:ObjectMeta provisioner:2 parameters:3:% reclaimPolicy:4 mountOptions:5:* "
        "allowVolumeExpansion:6:bool volumeBindingMode:7 allowedTopologies:8:*TopologySelectorTerm"
    ),
}
